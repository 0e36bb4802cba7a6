"""A model's files: its configuration and weights, and where in a run folder they lie."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from gptloom.config import ModelConfig
from gptloom.errors import InputError, shortened
from gptloom.files import json_object, read_json, regular_size
from gptloom.model.base import LanguageModel
from gptloom.model.build import build_model, outline
from gptloom.settings import parse

_CURE = "use another checkpoint"
_LONGEST_HEADER = 1 << 24  # a thousand layers have a tenth of that


def weights(model: LanguageModel) -> dict[str, torch.Tensor]:
    """Copies of the model's parameters by name; one that several layers share (a tied head, a shared table) is there once."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def load_model(folder: Path) -> LanguageModel:
    """The model that a bundle holds. Its files are compared before anything is allocated for it.

    Raises:
        InputError: a file is missing or damaged, they are at odds, or a weight is not a finite number.
        MachineError: the model does not fit into the memory.
    """
    config, path = read_model_config(folder / "config.json"), folder / "model.safetensors"
    _compare(read_header(path), config, path)
    model = build_model(config)
    broken = []
    try:
        with safe_open(path, framework="pt") as file, torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(file.get_tensor(name))
                if not parameter.isfinite().all():
                    broken.append((name, int((~parameter.isfinite()).sum())))
    except (OSError, SafetensorError) as error:
        raise InputError(f"the weights cannot be read: {error}", where=str(path), cure=_CURE) from None
    if broken:
        name, count = broken[0]
        more = f", and so have {len(broken) - 1} other tensors" if len(broken) > 1 else ""
        raise InputError(f"{name} has {count:,} values that are NaN or infinite{more}", where=str(path), cure=_CURE)
    return model


def read_header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of each tensor in a safetensors file, by name; the tensors themselves are not read.

    Raises:
        InputError: it cannot be read, or does not begin as a safetensors file does.
    """
    size = regular_size(path, cure=_CURE)
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(size - 8, _LONGEST_HEADER):
                raise ValueError(f"its header cannot have {length:,} bytes")
            content = json_object(file.read(length).decode())
        content.pop("__metadata__", None)
        return {name: (str(about["dtype"]), tuple(map(int, about["shape"]))) for name, about in content.items()}
    except OSError as error:
        raise InputError(f"the weights cannot be read: {error.strerror}", where=str(path), cure=_CURE) from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"is not a whole safetensors file: {error}", where=str(path), cure=_CURE) from None


def _compare(header: Mapping[str, tuple[str, tuple[int, ...]]], config: ModelConfig, path: Path) -> None:
    """See that the tensors in a file are those of the model that it is for."""
    if config.n_layer > max(64, len(header)):  # the outline of so many layers would be larger than the file
        problems = [f"there are {len(header)} tensors for n_layer={config.n_layer}"]
    else:
        expected = {name: ("F32", tuple(one.shape)) for name, one in outline(config).named_parameters()}
        problems = [f"{name} is missing" for name in expected.keys() - header.keys()] + [f"{name} is not expected" for name in header.keys() - expected.keys()]
        for name in expected.keys() & header.keys():
            if header[name] != expected[name]:
                (dtype, shape), (right, wanted) = header[name], expected[name]
                problems.append(f"{name} has shape {shape} instead of {wanted}" if shape != wanted else f"{name} is of type {dtype} instead of {right}")
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        listed = ", ".join(shortened(problem, 200) for problem in sorted(problems)[:3])
        raise InputError(f"the weights do not fit config.json: {listed}{more}", where=str(path), cure="keep the files of a bundle together")


def read_model_config(path: Path) -> ModelConfig:
    """The model's shape from a bundle's config.json."""
    cure = "give a run folder, a checkpoint folder or a bundle"
    saved = read_json(path, cure=cure)
    if saved.get("format") != "gptloom" or not isinstance(saved.get("model"), dict):
        raise InputError("is not a gptloom configuration", where=str(path), cure=cure)
    return parse(ModelConfig, saved["model"], where=str(path))


def checkpoint_names(run: Path) -> Iterator[str]:
    """The names of a run's checkpoints, oldest first."""
    return (path.name for path in sorted((run / "checkpoints").glob("step-*")) if path.is_dir())


def find_bundle(path: Path, which: str = "best") -> Path:
    """The folder with the weights: `path` itself, or the named checkpoint of the run folder that `path` is."""
    cure = "give a run folder, a checkpoint folder or a bundle"
    if not path.is_dir():
        raise InputError("there is no such folder" if not path.exists() else "is not a folder", where=str(path), cure=cure)
    if (path / "model.safetensors").exists():
        return path
    names = list(checkpoint_names(path))
    if not (path / "checkpoints").is_dir() or not names:
        raise InputError("holds no model and no checkpoints yet", where=str(path), cure=cure)
    name = which
    if which in ("best", "latest"):
        pointer = path / which if (path / which).exists() else path / "latest"
        name = pointer.read_text(encoding="utf-8").strip() if pointer.exists() else names[-1]
    if not re.fullmatch(r"step-\d+", name) or name not in names:
        raise InputError(f"there is no checkpoint {name!r}", where=str(path), cure=f"choose best, latest or one of {', '.join(names)}")
    return path / "checkpoints" / name
