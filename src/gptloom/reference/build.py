"""Builds the plain model of a ladder step, and converts weights and gradients between it and the production decoder.

The decoder stores the queries, keys and values of all heads in one tensor, and SwiGLU's two wide matrices in another.
The plain models use separate tensors. Concatenated along the first axis, they are the decoder's tensor.
"""

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gptloom.config.model import ModelConfig
from gptloom.errors import ConfigError, nearest
from gptloom.reference import modern, recurrent, steps
from gptloom.reference.lecture import Block, FeedForward, Head, LayerNorm, MultiHeadAttention, PlainGPT

if TYPE_CHECKING:
    from gptloom.model.base import LanguageModel

_PLACES = [
    (r"^(attention|feed_forward)\.", r"blocks.0.\1."),  # a model with one layer has no list of blocks
    (r"attention\.(?:heads\.\d+\.)?(?:query|key|value)\.weight$", "mixer.qkv.weight"),
    (r"attention\.(?:queries|keys|values)\.\d+\.weight$", "mixer.qkv.weight"),
    (r"attention\.projection\.", "mixer.out."),
    (r"attention\.", "mixer."),
    (r"feed_forward\.(?:gate|up)\.", "mlp.up."),
    (r"feed_forward\.", "mlp."),
    (r"\.gain$", ".weight"),
    (r"^layers\.(\d+)\.input\.(\w+)$", r"layers.\2_ih_l\1"),  # PyTorch's names of a recurrent layer's tensors
    (r"^layers\.(\d+)\.hidden\.(\w+)$", r"layers.\2_hh_l\1"),
]
_ORDER = {"query": 0, "queries": 0, "key": 1, "keys": 1, "value": 2, "values": 2, "gate": 0, "up": 1}


def correspondence(plain: nn.Module) -> dict[str, list[str]]:
    """Return {decoder's tensor: the plain model's tensors that it consists of, in the order of its rows}."""
    found: dict[str, list[str]] = {}
    for name, _ in plain.named_parameters():
        place = name
        for pattern, replacement in _PLACES:
            place = re.sub(pattern, replacement, place)
        found.setdefault(place, []).append(name)
    # sorted() keeps the heads in their order.
    return {place: sorted(names, key=_rank) for place, names in found.items()}


def _rank(name: str) -> int:
    return next((_ORDER[part] for part in reversed(name.split(".")) if part in _ORDER), 0)


def to_decoder(plain: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert a plain model's tensors (weights or gradients by parameter name) to the decoder's tensors and names."""
    return {place: torch.cat([tensors[name] for name in names]) for place, names in correspondence(plain).items()}


def from_decoder(plain: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert a decoder's tensors to the plain model's tensors and names, the inverse of `to_decoder`."""
    rows = {name: len(p) for name, p in plain.named_parameters()}
    out: dict[str, Tensor] = {}
    for place, names in correspondence(plain).items():
        out |= dict(zip(names, torch.split(tensors[place], [rows[name] for name in names]), strict=True))
    return out


@torch.no_grad()
def copy_weights(plain: nn.Module, decoder: "LanguageModel") -> None:
    """Copy a plain model's weights to a decoder of the same step.

    Raises:
        ValueError: the models differ: a tensor is missing in one of them or has another shape.
    """
    ours = dict(decoder.named_parameters())
    theirs = to_decoder(plain, {name: p.detach() for name, p in plain.named_parameters()})
    shapes = [{name: tuple(p.shape) for name, p in tensors.items()} for tensors in (ours, theirs)]
    differing = sorted(name for name in ours.keys() | theirs.keys() if shapes[0].get(name) != shapes[1].get(name))
    if differing:
        raise ValueError(
            "; ".join(f"{name}: decoder {shapes[0].get(name)}, plain {shapes[1].get(name)}" for name in differing)
        )
    for name, p in ours.items():
        p.copy_(theirs[name])


PLAIN: dict[str, tuple[Callable[..., Any], ...]] = {
    "bigram": (steps.Bigram,),
    "embedding": (steps.Embedded,),
    "positions": (steps.Positioned,),
    "averaging": (steps.average_by_loop, steps.average_by_matrix, steps.average_by_softmax, steps.Averaged),
    "one-head": (Head, steps.OneHeadModel),
    "multi-head": (steps.JoinedHeads, steps.MultiHeadModel),
    "mlp": (FeedForward, steps.MLPModel),
    "residual": (MultiHeadAttention, steps.ResidualBlock, steps.ResidualModel),
    "layernorm": (LayerNorm, Block, PlainGPT),
    "post-norm": (steps.PostNormBlock, steps.PostNormModel),
    "dropout": (Head, MultiHeadAttention, FeedForward),
    "scale": (PlainGPT,),
    "score-scale": (Head,),
    "gpt2-init": (modern.gpt2_weights,),
    "gelu": (modern.gelu, modern.GELUFeedForward, modern.GELUModel),
    "rope": (modern.rotate, modern.RotaryHead, modern.RotaryAttention, modern.ModernBlock, modern.ModernGPT),
    "rmsnorm": (modern.RMSNorm,),
    "qk-norm": (modern.GroupedAttention,),
    "swiglu": (modern.SwiGLU,),
    "gqa": (modern.GroupedAttention,),
    "modern": (
        modern.rotate,
        modern.RMSNorm,
        modern.GroupedAttention,
        modern.SwiGLU,
        modern.ModernBlock,
        modern.ModernGPT,
    ),
    "rnn": (recurrent.RNNLayer, recurrent.RecurrentModel),
    "lstm": (recurrent.LSTMLayer, recurrent.RecurrentModel),
    "gru": (recurrent.GRULayer, recurrent.RecurrentModel),
}
"""The new or essential classes and functions of each step, which `gptloom ladder show` prints."""


def plain_model(name: str, config: ModelConfig) -> nn.Module:
    """Build the plain model of a ladder step, with initial weights by `config.init` (PyTorch's or GPT-2's).

    Args:
        name: a step that trains a model (the counting steps do not).
        config: the step's configuration. Its sizes are used; from `rope` on, also the kinds of layers.

    Raises:
        ConfigError: unknown step.
    """
    c = config
    model: PlainGPT | modern.ModernGPT
    tables = {"vocab_size": c.vocab_size, "block_size": c.block_size, "n_embd": c.n_embd}
    shape = {**tables, "n_head": c.n_head, "n_layer": c.n_layer}
    scale = c.n_embd**-0.5 if c.score_scale == "embedding" else None
    match name:
        case "bigram":
            return steps.Bigram(c.vocab_size)
        case "embedding":
            return steps.Embedded(c.vocab_size, c.n_embd)
        case "positions":
            return steps.Positioned(**tables)
        case "averaging":
            return steps.Averaged(**tables)
        case "one-head":
            return steps.OneHeadModel(**tables)
        case "multi-head":
            return steps.MultiHeadModel(**tables, n_head=c.n_head)
        case "mlp":
            return steps.MLPModel(**tables, n_head=c.n_head)
        case "residual":
            return steps.ResidualModel(**shape)
        case "post-norm":
            return steps.PostNormModel(**shape, scale=scale)
        case "layernorm" | "dropout" | "scale" | "score-scale" | "gpt2-init":
            model = PlainGPT(**shape, dropout=c.dropout, scale=scale)
        case "gelu":
            model = modern.GELUModel(**shape, dropout=c.dropout)
        case "rope" | "rmsnorm" | "qk-norm" | "swiglu" | "gqa" | "modern":
            model = _modern(c)
        case "rnn" | "lstm" | "gru":
            layer = {"rnn": recurrent.RNNLayer, "lstm": recurrent.LSTMLayer, "gru": recurrent.GRULayer}[name]
            return recurrent.RecurrentModel(c.vocab_size, c.n_embd, [layer(c.n_embd) for _ in range(c.n_layer)])
        case _:
            cure = nearest(name, PLAIN) or f"one of: {', '.join(PLAIN)}"
            raise ConfigError(f"no ladder step {name!r} that trains a model", where="ladder", cure=cure)
    if c.init == "gpt2":
        modern.gpt2_weights(model)
    return model


def _modern(c: ModelConfig) -> modern.ModernGPT:
    """Build a modern GPT with the norm, attention and MLP of the configuration."""
    bias = c.bias != "none"

    def norm() -> LayerNorm | modern.RMSNorm:
        return modern.RMSNorm(c.n_embd) if c.norm == "rmsnorm" else LayerNorm(c.n_embd)

    def attention() -> nn.Module:
        if c.qk_norm:
            return modern.GroupedAttention(c.n_embd, c.n_head, c.kv_heads, c.block_size, c.dropout, c.rope_theta, bias)
        return modern.RotaryAttention(c.n_embd, c.n_head, c.block_size, c.dropout, c.rope_theta, bias)

    def feed_forward() -> nn.Module:
        if c.mlp == "swiglu":
            return modern.SwiGLU(c.n_embd, c.hidden_width, c.dropout, bias)
        return modern.GELUFeedForward(c.n_embd, c.dropout)

    blocks = [modern.ModernBlock(norm(), attention(), norm(), feed_forward()) for _ in range(c.n_layer)]
    return modern.ModernGPT(c.vocab_size, c.n_embd, blocks, norm(), c.head_bias)
