"""A block on a CPU as two straight lines: all of its forward pass, and all of its backward pass, as one node of autograd.

`Block` is the reference; the tests hold the two together, value by value and gradient by gradient.
"""

from itertools import islice
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from gptloom.config import ModelConfig
from gptloom.model import handwritten as by_hand
from gptloom.model.handwritten import Norm
from gptloom.model.state import Context

LONGEST = 256
"""Context up to which it pays to keep the attention weights for the backward pass: their number grows with its square."""


class Plan(NamedTuple):
    """What a block does besides its weights.

    Attributes:
        norm: of the branches' inputs.
        heads: their number; keys and values have as many as queries.
        scale: of the scores.
        head_norm: RMSNorm of queries and keys, or None.
        mlp: the activation's name in `ModelConfig.mlp`.
    """

    norm: Norm
    heads: int
    scale: float
    head_norm: Norm | None
    mlp: str


class Weights(NamedTuple):
    """A block's parameters, as `Block` holds them, None where it has none; and the rotation of its positions."""

    norm1: Tensor
    norm1_bias: Tensor | None
    qkv: Tensor
    qkv_bias: Tensor | None
    query_norm: Tensor | None
    key_norm: Tensor | None
    out: Tensor
    out_bias: Tensor | None
    norm2: Tensor
    norm2_bias: Tensor | None
    up: Tensor
    up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None
    cos: Tensor | None
    sin: Tensor | None


def make_plan(config: ModelConfig) -> Plan | None:
    """The plan of a configuration's blocks; None where only `Block` itself can compute them."""
    known = (config.norm_position, config.residual, config.mixer, config.output_projection) == ("pre", "add", "attention", True)
    drops = config.dropout or config.attn_dropout
    if not known or drops or config.kv_heads != config.n_head or "none" in (config.norm, config.mlp):
        return None
    centred = config.norm == "layernorm"
    return Plan(
        norm=Norm(centred, 1e-5 if centred else 1e-6),
        heads=config.n_head,
        scale=(config.width_per_head if config.score_scale == "head" else config.n_embd) ** -0.5,
        head_norm=Norm(False, 1e-6) if config.qk_norm else None,
        mlp=config.mlp,
    )


def pays(x: Float[Tensor, "b t c"], context: Context) -> bool:
    """Whether this is a call of the plain kind on a CPU: whole windows, nothing masked beyond the future, nothing traced."""
    plain = context.mask is None and context.trace is None and context.state is None and x.shape[1] <= LONGEST
    return plain and x.device.type == "cpu" and not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling()


def whole_block(x: Float[Tensor, "b t c"], plan: Plan, causal: bool, weights: Weights) -> Float[Tensor, "b t c"]:
    """What `Block` makes of x; `causal`: whether a position sees only itself and what came before."""
    return _WholeBlock.apply(x, plan, causal, *weights)  # type: ignore[no-any-return, no-untyped-call]


class _WholeBlock(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, plan: Plan, causal: bool, *given: Tensor | None) -> Tensor:
        w, (b, t, c) = Weights(*given), x.shape  # type: ignore[arg-type]
        x = x.reshape(b * t, c)
        seen, norm1 = by_hand.norm(x, plan.norm, w.norm1, w.norm1_bias)
        three, *heads = _split(F.linear(seen, w.qkv, w.qkv_bias).view(b, t, -1), plan, w)
        joined, looks = by_hand.attention(three, plan.scale, causal)
        joined = joined.view(plan.heads, b, t, -1).permute(1, 2, 0, 3).reshape(b * t, -1)
        x = _add(x, joined, w.out, w.out_bias)
        thought, norm2 = by_hand.norm(x, plan.norm, w.norm2, w.norm2_bias)
        active, inner = by_hand.activate(F.linear(thought, w.up, w.up_bias), plan.mlp)
        ctx.save_for_backward(*given, seen, *norm1, *three, *heads, looks, joined, thought, *norm2, active, inner)
        ctx.plan, ctx.shape = plan, (b, t, c)
        return _add(x, active, w.down, w.down_bias).view(b, t, c)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        plan, (b, t, c), saved = ctx.plan, ctx.shape, iter(ctx.saved_tensors)
        w, seen, *norm1 = Weights(*islice(saved, len(Weights._fields))), *islice(saved, 4)
        query, key, value, unit, rate, looks, joined, thought, *norm2, active, inner = saved
        grad = grad.reshape(b * t, c)
        g_active, g_down, g_down_bias = by_hand.linear_backward(grad, active, w.down, w.down_bias is not None)
        g_inner = by_hand.activate_backward(g_active, plan.mlp, inner)
        g_thought, g_up, g_up_bias = by_hand.linear_backward(g_inner, thought, w.up, w.up_bias is not None)
        g_middle, g_norm2, g_norm2_bias = by_hand.norm_backward(g_thought, plan.norm, w.norm2, w.norm2_bias, norm2)
        grad = g_middle.add_(grad)
        g_joined, g_out, g_out_bias = by_hand.linear_backward(grad, joined, w.out, w.out_bias is not None)
        g_heads = g_joined.view(b, t, plan.heads, -1).permute(2, 0, 1, 3).reshape_as(value)
        g_three = torch.empty(3, *g_heads.shape, dtype=grad.dtype)
        by_hand.attention_backward(g_heads, (query, key, value), looks, plan.scale, g_three)
        g_qkv, g_query_norm, g_key_norm = _split_backward(g_three, (b, t), plan, w, (unit, rate))
        g_seen, g_qkv_weight, g_qkv_bias = by_hand.linear_backward(g_qkv, seen, w.qkv, w.qkv_bias is not None)
        g_x, g_norm1, g_norm1_bias = by_hand.norm_backward(g_seen, plan.norm, w.norm1, w.norm1_bias, norm1)
        grads = Weights(
            g_norm1, g_norm1_bias, g_qkv_weight, g_qkv_bias, g_query_norm, g_key_norm, g_out, g_out_bias,
            g_norm2, g_norm2_bias, g_up, g_up_bias, g_down, g_down_bias, None, None,
        )  # fmt: skip
        return g_x.add_(grad).view(b, t, c), None, None, *grads


def _add(x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """X + linear(branch)."""
    out = torch.addmm(x, branch, weight.t())
    return out if bias is None else out.add_(bias)


def _split(qkv: Float[Tensor, "b t _"], plan: Plan, w: Weights) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor | None, Tensor | None]:
    """Queries, keys and values, each (h b, t, d), normalised and rotated; and what the way back needs of queries and keys."""
    b, t, _ = qkv.shape
    three = qkv.view(b, t, 3 * plan.heads, -1).permute(2, 0, 1, 3)
    unit = rate = None
    if plan.head_norm is None or w.query_norm is None or w.key_norm is None:
        three = three.contiguous().view(3, plan.heads * b, t, -1)
        pair, value = three[:2], three[2]
    else:
        mixed = three[: 2 * plan.heads]
        rate = by_hand.rms_rate(mixed, plan.head_norm.eps)
        unit = torch.mul(mixed, rate, out=mixed.new_empty(mixed.shape)).view(2, plan.heads * b, t, -1)
        pair = unit * torch.stack((w.query_norm, w.key_norm))[:, None, None]
        value = three[2 * plan.heads :].reshape(plan.heads * b, t, -1)
    if w.cos is not None and w.sin is not None:
        pair = by_hand.rotate(pair, w.cos, w.sin, 1.0)
    return (pair[0], pair[1], value), unit, rate


def _split_backward(
    grad: Float[Tensor, "3 hb t d"], shape: tuple[int, int], plan: Plan, w: Weights, kept: tuple[Tensor | None, Tensor | None]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The gradient of qkv, (n, 3 h d), and of the two norms' gains."""
    (b, t), pair = shape, grad[:2]
    g_query_norm = g_key_norm = None
    if w.cos is not None and w.sin is not None:
        pair = by_hand.rotate(pair, w.cos, w.sin, -1.0)
    out = grad.new_empty(b, t, 3 * plan.heads, grad.shape[-1])
    unit, rate = kept
    if unit is not None and rate is not None and w.query_norm is not None and w.key_norm is not None:
        g_query_norm, g_key_norm = (pair * unit).sum((1, 2)).unbind()
        inner = pair * torch.stack((w.query_norm, w.key_norm))[:, None, None]
        along = torch.linalg.vecdot(inner, unit).mul_(-1.0 / unit.shape[-1]).unsqueeze(-1)
        inner = inner.addcmul_(unit, along).view(2 * plan.heads, b, t, -1)
        torch.mul(inner.permute(1, 2, 0, 3), rate.permute(1, 2, 0, 3), out=out[:, :, : 2 * plan.heads])
    else:
        out[:, :, : 2 * plan.heads] = pair.reshape(2 * plan.heads, b, t, -1).permute(1, 2, 0, 3)
    out[:, :, 2 * plan.heads :] = grad[2].view(plan.heads, b, t, -1).permute(1, 2, 0, 3)
    return out.view(b * t, -1), g_query_norm, g_key_norm
