"""The files of a model: config.json and model.safetensors."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from gptloom.config.load import parse
from gptloom.config.model import ModelConfig
from gptloom.errors import InputError, shortened
from gptloom.fast.int8 import is_quantised, refuse
from gptloom.files import json_object, read_json, regular_size, write_text
from gptloom.model.base import LanguageModel
from gptloom.model.build import build_model, meta_model

_CURE = "use another checkpoint"
_TOGETHER = "keep the files of a bundle together"
_LONGEST_HEADER = 1 << 24  # bytes; a model of 1,000 layers needs a tenth of that


def weights(model: LanguageModel) -> dict[str, torch.Tensor]:
    """Return CPU copies of the model's parameters by name.

    A parameter that several layers share (a tied head, a shared table) appears once.

    Raises:
        ConfigError: some weights are int8.
    """
    if is_quantised(model):
        refuse()
    return {name: parameter.detach().to("cpu", copy=True) for name, parameter in model.named_parameters()}


def write_model(folder: Path, config: ModelConfig, tensors: dict[str, torch.Tensor]) -> None:
    """Write config.json and model.safetensors into an existing folder."""
    text = json.dumps({"format": "gptloom", "version": 1, "model": config.model_dump(mode="json")}, indent=2)
    write_text(folder / "config.json", text + "\n")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def load_model(folder: Path) -> LanguageModel:
    """Load the model of a bundle. Its files are compared before memory is allocated for the model.

    Raises:
        InputError: a file is missing or damaged, the files contradict each other, or a weight is not finite.
        MachineError: the model does not fit into memory.
    """
    config, path = read_model_config(folder / "config.json"), folder / "model.safetensors"
    header = read_header(path)
    if config.n_layer > max(64, len(header)):  # before a model of that many layers is built on the meta device
        raise InputError(
            f"has {len(header)} tensors, too few for n_layer={config.n_layer}", where=str(path), cure=_TOGETHER
        )
    _compare(header, meta_model(config), path)
    model = build_model(config)
    load_weights(model, path)
    return model


def load_weights(model: LanguageModel, path: Path, *, names: Mapping[str, str] | None = None) -> None:
    """Fill a model from a safetensors file.

    Args:
        model: its parameters are overwritten.
        path: the file.
        names: {name in the model: name in the file}, for a file of another program; its dtypes may also differ.

    Raises:
        InputError: the file is damaged, its names, shapes or dtypes are not those of the model, or a weight is NaN or
            infinite.
    """
    header = read_header(path)
    _compare(
        header if names is None else {here: ("F32", header[there][1]) for here, there in names.items()}, model, path
    )
    broken = []
    try:
        with safe_open(path, framework="pt") as file, torch.no_grad():
            for name, parameter in model.named_parameters():
                tensor = file.get_tensor(name if names is None else names[name])
                # aminmax propagates NaN; this is ten times as fast as checking every value.
                if not torch.stack(tensor.aminmax()).isfinite().all():
                    broken.append((name, int((~tensor.isfinite()).sum())))
                parameter.copy_(tensor)
    except (OSError, SafetensorError) as error:
        raise InputError(f"the weights cannot be read: {error}", where=str(path), cure=_CURE) from None
    if broken:
        name, count = broken[0]
        more = f", and {len(broken) - 1} more tensors have such values" if len(broken) > 1 else ""
        raise InputError(f"{name} has {count:,} values that are NaN or infinite{more}", where=str(path), cure=_CURE)


def read_header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Read the dtype and shape of each tensor in a safetensors file, by name; the tensors are not read.

    Raises:
        InputError: the file cannot be read, or has no valid header.
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
        raise InputError(f"is not a valid safetensors file: {error}", where=str(path), cure=_CURE) from None


def _compare(header: Mapping[str, tuple[str, tuple[int, ...]]], model: LanguageModel, path: Path) -> None:
    """Check that a file's tensors have the model's names, shapes and dtypes."""
    expected = {name: ("F32", tuple(one.shape)) for name, one in model.named_parameters()}
    problems = [f"{name} is missing" for name in expected.keys() - header.keys()] + [
        f"{name} is not expected" for name in header.keys() - expected.keys()
    ]
    for name in expected.keys() & header.keys():
        if header[name] != expected[name]:
            (dtype, shape), (right, wanted) = header[name], expected[name]
            problems.append(
                f"{name} has shape {shape} instead of {wanted}"
                if shape != wanted
                else f"{name} is of type {dtype} instead of {right}"
            )
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        listed = ", ".join(shortened(problem, 200) for problem in sorted(problems)[:3])
        raise InputError(f"the weights do not fit the model's shape: {listed}{more}", where=str(path), cure=_TOGETHER)


def read_model_config(path: Path) -> ModelConfig:
    """Read the model's configuration from a bundle's config.json."""
    cure = "give a run folder, a checkpoint folder or a bundle"
    saved = read_json(path, cure=cure)
    if saved.get("format") != "gptloom" or not isinstance(saved.get("model"), dict):
        raise InputError("is not a gptloom configuration", where=str(path), cure=cure)
    return parse(ModelConfig, saved["model"], where=str(path))
