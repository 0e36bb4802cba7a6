"""From a ladder step's name and configuration to its plain model, and to the code that is new in it."""

from collections.abc import Callable
from typing import Any

from torch import nn

from gptloom.config import ModelConfig
from gptloom.errors import ConfigError, nearest
from gptloom.model.plain import modern, steps
from gptloom.model.plain.lecture import Block, FeedForward, Head, LayerNorm, MultiHeadAttention, PlainGPT

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
    "modern": (modern.rotate, modern.RMSNorm, modern.GroupedAttention, modern.SwiGLU, modern.ModernBlock, modern.ModernGPT),
}
"""What `gptloom ladder show` prints: the classes and functions that are new or essential in a step."""


def plain_model(name: str, config: ModelConfig) -> nn.Module:
    """The plain model of a ladder step, with first weights drawn by `config.init` (PyTorch's or GPT-2's).

    Args:
        name: a step that trains a model (the steps that count have none).
        config: the step's own; its sizes are used, and the kinds of parts from `rope` on.

    Raises:
        ConfigError: no such step.
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
        case _:
            cure = nearest(name, PLAIN) or f"one of: {', '.join(PLAIN)}"
            raise ConfigError(f"no ladder step {name!r} that trains a model", where="ladder", cure=cure)
    if c.init == "gpt2":
        modern.gpt2_weights(model)
    return model


def _modern(c: ModelConfig) -> modern.ModernGPT:
    """The parts that the configuration names, in a block that is always the same."""
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
