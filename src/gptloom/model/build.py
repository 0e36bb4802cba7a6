"""The model that a configuration describes, and what it takes before there is one.

What a model's shape costs, counted on its outline: parameters by part, operations a token, bytes of memory a sequence.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from gptloom.config.model import ModelConfig
from gptloom.devices import memory_size
from gptloom.errors import MachineError
from gptloom.model.attention import Heads
from gptloom.model.base import LanguageModel
from gptloom.model.ngram import HashedNgrams
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


PARTS = ("tables", "ngrams", "attention", "mlp", "recurrent", "norms", "head", "other")
"""Where a parameter can be. A tied head is a table; tables and n-grams are looked up, and multiply nothing."""


def count_parts(config: ModelConfig) -> dict[str, int]:
    """Parameters by part, each counted once; the parts that there are add up to the model's `parameter_count`."""
    model = meta_model(config)
    found = Counter[str]()
    seen: set[int] = set()
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                found[_part(name, module)] += parameter.numel()
    assert found.total() == model.parameter_count()
    return {part: found[part] for part in PARTS if found[part]}


def operations_per_token(config: ModelConfig, context: int | None = None) -> int:
    """Operations of the matrix products of one token's training, forward and backward: 6 N + 12 L T H Q.

    N are the weights that a token is multiplied with: every linear layer, the head with them, but no table that is only
    looked up; a forward pass multiplies and adds once for each, and a backward pass twice as often (Kaplan et al. 2020,
    section 2.1). L layers of H heads that are Q wide look at T places each, all of them, whether or not a mask then
    takes half of it back (Chowdhery et al. 2022, appendix B). Norms, activations and the softmax are not counted. A
    forward pass alone is a third of it.

    Args:
        config: the shape. Of an encoder-decoder, a token is one of the source and one of the target.
        context: places that a token looks at (default: block_size).
    """
    model, context = meta_model(config), config.block_size if context is None else context
    seen = sum(part.n_head * part.width for part in model.modules() if isinstance(part, Heads))
    return 6 * sum(_weights(model)) + 12 * context * seen


def cache_bytes(config: ModelConfig, length: int) -> int:
    """Bytes in float32 of what a model remembers of one text of `length` tokens: keys and values, or a recurrent state."""
    cache = meta_model(config).init_cache(1, length)
    return sum(tensor.numel() * tensor.element_size() for layer in cache.layers for tensor in layer.values())


def read_weights(config: ModelConfig) -> int:
    """Parameters that writing one token reads: all but the tables that are only looked up, of which a row is read."""
    parts = count_parts(config)
    looked_up = parts.get("tables", 0) + parts.get("ngrams", 0)
    return sum(parts.values()) - looked_up + (config.vocab_size * config.n_embd if config.head == "tied" else 0)


def _weights(model: LanguageModel) -> Iterator[int]:
    """Sizes of the matrices that every token passes through."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            yield module.weight.numel()
        elif isinstance(module, nn.RNNBase):
            yield sum(parameter.numel() for name, parameter in module.named_parameters() if name.startswith("weight"))


def _part(name: str, module: nn.Module) -> str:
    path = name.split(".")
    if isinstance(module, HashedNgrams):
        return "ngrams"
    if isinstance(module, nn.Embedding):
        return "tables"
    if isinstance(module, nn.RNNBase):
        return "recurrent"
    if "norm" in path[-1]:
        return "norms"
    if "mixer" in path or "cross" in path:
        return "attention"
    return next((part for part in ("mlp", "head") if part in path), "other")
