"""A model's files: its configuration and weights, and where in a run folder they lie."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from gptloom.config import ModelConfig
from gptloom.errors import InputError
from gptloom.model.base import LanguageModel
from gptloom.settings import parse


def weights(model: LanguageModel) -> dict[str, torch.Tensor]:
    """Copies of the model's parameters by name; one that several layers share (a tied head, a shared table) is there once."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def load_weights(model: LanguageModel, path: Path) -> None:
    """Fill a model from a safetensors file, whose names, shapes and types must be the model's own."""
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"the weights cannot be read: {error}", where=str(path), cure="use another checkpoint") from None
    expected = weights(model)
    problems = [f"{name} is missing" for name in expected.keys() - tensors.keys()] + [f"{name} is not expected" for name in tensors.keys() - expected.keys()]
    problems += [
        f"{name} has shape {tuple(t.shape)} instead of {tuple(expected[name].shape)}"
        for name, t in tensors.items()
        if name in expected and t.shape != expected[name].shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise InputError(
            f"the weights do not fit config.json: {', '.join(sorted(problems)[:3])}{more}", where=str(path), cure="keep the files of a bundle together"
        )
    model.load_state_dict(tensors, strict=False)


def read_model_config(path: Path) -> ModelConfig:
    """The model's shape from a bundle's config.json."""
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        if saved["format"] != "gptloom":
            raise KeyError("format")
        values = saved["model"]
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(path), cure="give a run folder, a checkpoint folder or a bundle") from None
    except (ValueError, KeyError, TypeError):
        raise InputError("is not a gptloom configuration", where=str(path), cure="give a run folder, a checkpoint folder or a bundle") from None
    return parse(ModelConfig, values, where=str(path))


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
