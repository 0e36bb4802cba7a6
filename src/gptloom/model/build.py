"""The model that a configuration describes, and what it takes before there is one."""

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from gptloom.config.model import ModelConfig
from gptloom.devices import memory_size
from gptloom.errors import MachineError
from gptloom.model.base import LanguageModel
from gptloom.model.recurrent import Recurrent
from gptloom.model.transformer import Decoder, EncoderDecoder


def build_model(config: ModelConfig) -> LanguageModel:
    """A model with freshly drawn weights, from torch's global generator.

    Raises:
        MachineError: the weights alone are more than the memory holds; nothing has been allocated.
    """
    check_memory(config, torch.device("cpu"))
    return _build(config)


def meta_model(config: ModelConfig) -> LanguageModel:
    """The model's parameters without their numbers: names, shapes and types at any size, in no memory to speak of."""
    # The tables of fixed positions are no parameters.
    config = config if config.positions == "learned" else config.model_copy(update={"positions": "none"})
    with torch.device("meta"), _Undrawn():
        return _build(config)


def check_memory(config: ModelConfig, device: torch.device, *, copies: int = 1, more: int = 0) -> None:
    """See that a model fits, before anything is allocated.

    Args:
        config: the shape.
        device: whose memory is asked for.
        copies: numbers kept for each weight; training keeps 4: weight, gradient, and AdamW's two means.
        more: bytes needed besides.

    Raises:
        MachineError: it does not fit even alone in all of the memory.
    """
    have = memory_size(device)
    if have is None:
        return
    # Layers are alike, so that two tell of a thousand.
    depths = sorted({min(config.n_layer, depth) for depth in (1, 2)})
    counts = [meta_model(config.model_copy(update={"n_layer": depth})).parameter_count() for depth in depths]
    numbers = counts[-1] + (config.n_layer - depths[-1]) * (counts[-1] - counts[0])
    table = {"rotary": 2 * config.width_per_head, "sinusoidal": config.n_embd}.get(
        config.positions, 0
    ) * config.block_size
    needed = 4 * (copies * numbers + table) + more
    if needed > have:
        what = f"{numbers:,} parameters and what goes with them take {needed / 1e9:,.1f} GB, and the memory has {have / 1e9:,.1f} GB"
        raise MachineError(
            what,
            where=str(device),
            cure="make the model (--model.n-embd, --model.n-layer, --model.block-size) or --train.batch-size smaller",
        )


def _build(config: ModelConfig) -> LanguageModel:
    if config.is_recurrent:
        return Recurrent(config)
    return EncoderDecoder(config) if config.architecture == "encoder-decoder" else Decoder(config)


class _Undrawn(TorchFunctionMode):
    """Nothing is drawn: an outline has no numbers, and PyTorch would load its compiler (2 seconds) to pretend."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        return given["tensor"] if getattr(func, "__module__", "") == "torch.nn.init" else func(*args, **given)
