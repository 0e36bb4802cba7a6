"""A model's files: its configuration and its weights."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from gptloom.config import ModelConfig
from gptloom.durable import write_text
from gptloom.errors import InputError
from gptloom.model.base import LanguageModel
from gptloom.settings import parse


def weights(model: LanguageModel) -> dict[str, torch.Tensor]:
    """Copies of the model's parameters by name, in the CPU's memory; one that several layers share (a tied head, a shared table) is there once."""
    return {name: parameter.detach().to("cpu", copy=True) for name, parameter in model.named_parameters()}


def write_model(folder: Path, config: ModelConfig, tensors: dict[str, torch.Tensor]) -> None:
    """Write config.json and model.safetensors into an existing folder."""
    text = json.dumps({"format": "gptloom", "version": 1, "model": config.model_dump(mode="json")}, indent=2)
    write_text(folder / "config.json", text + "\n")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


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
