"""Build a model from its configuration; compute its size and cost, and check first that it fits into memory."""

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


PARTS = ("tables", "ngrams", "attention", "mlp", "recurrent", "norms", "head", "other")
"""The parts of a model. A tied head counts as a table. Tables and n-grams are lookups: they take no multiplications."""


def count_parts(config: ModelConfig) -> dict[str, int]:
    """Number of parameters of each part. They add up to the model's `parameter_count`."""
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
    """Return the FLOPs of the matrix products for one training token, forward and backward: 6 N + 12 L T H Q.

    N is the number of weights that a token is multiplied with: all linear layers and the head, but no lookup tables.
    The forward pass takes one multiplication and one addition per weight, the backward pass twice as many (Kaplan et
    al. 2020, section 2.1). L layers with H heads of width Q attend to T positions each; masked positions count too
    (Chowdhery et al. 2022, appendix B). Norms, activations and softmax are not counted. The forward pass alone is one
    third.

    Args:
        config: the model's configuration. For an encoder-decoder, a token is one of the source and one of the target.
        context: number of positions that a token attends to (default: block_size).
    """
    model, context = meta_model(config), config.block_size if context is None else context
    seen = sum(part.n_head * part.width for part in model.modules() if isinstance(part, Heads))
    return 6 * sum(_weights(model)) + 12 * context * seen


def cache_bytes(config: ModelConfig, length: int) -> int:
    """Bytes of the cache of one sequence of `length` tokens, in float32."""
    cache = meta_model(config).init_cache(1, length)
    return sum(tensor.numel() * tensor.element_size() for layer in cache.layers for tensor in layer.values())


def read_weights(config: ModelConfig) -> int:
    """Number of weights that are read to sample one token: all but the lookup tables."""
    parts = count_parts(config)
    looked_up = parts.get("tables", 0) + parts.get("ngrams", 0)
    return sum(parts.values()) - looked_up + (config.vocab_size * config.n_embd if config.head == "tied" else 0)


def _weights(model: LanguageModel) -> Iterator[int]:
    """Sizes of the matrices that every token is multiplied with."""
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
