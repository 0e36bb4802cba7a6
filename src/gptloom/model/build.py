"""Build a model from its configuration, and check first that it fits into memory."""

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
    """Build a model and draw its weights from torch's global generator.

    Raises:
        MachineError: the weights alone do not fit into memory. Nothing has been allocated.
    """
    check_memory(config, torch.device("cpu"))
    return _build(config)


def meta_model(config: ModelConfig) -> LanguageModel:
    """Build a model on PyTorch's meta device: it has names, shapes and dtypes, and takes no memory."""
    # Fixed position tables are not parameters.
    config = config if config.positions == "learned" else config.model_copy(update={"positions": "none"})
    with torch.device("meta"), _Undrawn():
        return _build(config)


def check_memory(config: ModelConfig, device: torch.device, *, copies: int = 1, more: int = 0) -> None:
    """Check that a model fits into memory before anything is allocated.

    Args:
        config: the model's configuration.
        device: the device whose memory is checked.
        copies: numbers that are stored per weight. Training stores 4: weight, gradient and AdamW's two moments.
        more: additional bytes.

    Raises:
        MachineError: the model does not fit, even if all of the memory were free.
    """
    have = memory_size(device)
    if have is None:
        return
    # All layers have the same size, so two depths are enough to extrapolate.
    depths = sorted({min(config.n_layer, depth) for depth in (1, 2)})
    counts = [meta_model(config.model_copy(update={"n_layer": depth})).parameter_count() for depth in depths]
    numbers = counts[-1] + (config.n_layer - depths[-1]) * (counts[-1] - counts[0])
    width = {"rotary": 2 * config.width_per_head, "sinusoidal": config.n_embd}.get(config.positions, 0)
    needed = 4 * (copies * numbers + width * config.block_size) + more
    if needed > have:
        what = (
            f"{numbers:,} parameters and what goes with them take {needed / 1e9:,.1f} GB, "
            f"and the memory has {have / 1e9:,.1f} GB"
        )
        cure = "make the model (--model.n-embd, --model.n-layer, --model.block-size) or --train.batch-size smaller"
        raise MachineError(what, where=str(device), cure=cure)


def _build(config: ModelConfig) -> LanguageModel:
    if config.is_recurrent:
        return Recurrent(config)
    return EncoderDecoder(config) if config.architecture == "encoder-decoder" else Decoder(config)


class _Undrawn(TorchFunctionMode):
    """Skip weight initialisation: on the meta device it has no effect, and it imports PyTorch's compiler (2 s)."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        return given["tensor"] if getattr(func, "__module__", "") == "torch.nn.init" else func(*args, **given)
