"""Forward and backward passes written by hand, in pairs, for the CPU; `whole_block` puts them together.

PyTorch's own passes are many small operations there, each of which reads and writes a whole activation, and each of which the
autograd engine has to call: on a small model that is most of a training step. N stands for batch times time.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Pair = tuple[Tensor, Tensor]
Three = tuple[Tensor, Tensor, Tensor]
Saved = tuple[Tensor, Tensor, Tensor | None]


class Norm(NamedTuple):
    """A normalisation: LayerNorm, or RMSNorm where there is no mean to take off.

    Attributes:
        centred: LayerNorm.
        eps: under the root.
    """

    centred: bool
    eps: float


def norm(x: Float[Tensor, "n c"], how: Norm, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Saved]:
    """The normalised x, and what `norm_backward` needs to know."""
    if how.centred:
        out, mean, rate = torch.native_layer_norm(x, x.shape[-1:], weight, bias, how.eps)
        return out, (x, mean, rate)
    rate = rms_rate(x, how.eps)
    unit = x * rate
    return unit * weight, (unit, rate, None)


def norm_backward(grad: Tensor, how: Norm, weight: Tensor, bias: Tensor | None, saved: Sequence[Any]) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of x, weight and bias."""
    if how.centred:
        x, mean, rate = saved
        mask = [True, True, bias is not None]
        return torch.ops.aten.native_layer_norm_backward(grad, x, x.shape[-1:], mean, rate, weight, bias, mask)  # type: ignore[no-any-return]
    unit, rate, _ = saved
    return rms_backward(grad * weight, unit, rate), (grad * unit).sum(0), None


def rms_rate(x: Float[Tensor, "*n c"], eps: float) -> Float[Tensor, "*n 1"]:
    """1 / sqrt(mean(x ** 2) + eps)."""
    rate: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().mul_(1.0 / x.shape[-1]).add_(eps).rsqrt_()
    return rate


def rms_backward(grad: Tensor, unit: Tensor, rate: Tensor) -> Tensor:
    """The gradient of x, from that of `unit` = x * rate, which is overwritten."""
    along = torch.linalg.vecdot(grad, unit).mul_(-1.0 / unit.shape[-1]).unsqueeze(-1)
    return grad.addcmul_(unit, along).mul_(rate)


def linear_backward(grad: Float[Tensor, "n o"], x: Float[Tensor, "n i"], weight: Float[Tensor, "o i"], has_bias: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of x, weight and bias of `F.linear`."""
    return grad @ weight, grad.t() @ x, grad.sum(0) if has_bias else None


def activate(x: Float[Tensor, "n h"], kind: str) -> Pair:
    """The activation of an MLP by its name in `ModelConfig.mlp`, and what `activate_backward` needs; x may be overwritten."""
    match kind:
        case "relu":
            return (out := x.relu_()), out
        case "relu2":
            return x.relu_().square(), x
        case "swiglu":
            gate, value = x.chunk(2, dim=-1)
            return F.silu(gate).mul_(value), x
        case _:
            return F.gelu(x, approximate=_APPROXIMATION[kind]), x


def activate_backward(grad: Tensor, kind: str, saved: Tensor) -> Tensor:
    """The gradient of x; `grad` may be overwritten."""
    match kind:
        case "relu":
            return torch.ops.aten.threshold_backward(grad, saved, 0.0)  # type: ignore[no-any-return]
        case "relu2":
            return grad.mul_(saved).mul_(2.0)
        case "swiglu":
            gate, value = saved.chunk(2, dim=-1)
            out = torch.empty_like(saved)
            left, right = out.chunk(2, dim=-1)
            torch.mul(grad, F.silu(gate), out=right)
            torch.mul(torch.ops.aten.silu_backward(grad, gate), value, out=left)
            return out
        case _:
            return torch.ops.aten.gelu_backward(grad, saved, approximate=_APPROXIMATION[kind])  # type: ignore[no-any-return]


def attention(three: Three, scale: float, causal: bool) -> Pair:
    """softmax(scale q k^T) v for n heads (Vaswani et al. 2017, section 3.2.1), and the weights; queries, keys and values are (n, t, d)."""
    query, key, value = three
    future = _future(query.shape[1], query.dtype) if causal else query.new_zeros(())
    weights = torch._softmax(torch.baddbmm(future, query, key.transpose(1, 2), alpha=scale), -1, False)
    return torch.bmm(weights, value), weights


def attention_backward(grad: Float[Tensor, "n t d"], three: Three, weights: Float[Tensor, "n t t"], scale: float, out: Float[Tensor, "3 n t d"]) -> None:
    """Gradients of queries, keys and values, written into `out`."""
    query, key, value = three
    grad_weights = torch.bmm(grad, value.transpose(1, 2))
    scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype).mul_(scale)
    torch.bmm(scores, key, out=out[0])
    torch.bmm(scores.transpose(1, 2), query, out=out[1])
    torch.bmm(weights.transpose(1, 2), grad, out=out[2])


def rotate(x: Float[Tensor, "*n t d"], cos: Float[Tensor, "t d"], sin: Float[Tensor, "t d"], sign: float) -> Tensor:
    """As `layers.rotate`; with sign = -1 the way back, which is also the backward pass."""
    half = x.shape[-1] // 2
    out, cos, sin = torch.empty_like(x), cos[:, :half], sin[:, :half]
    first, second = x[..., :half], x[..., half:]
    torch.mul(first, cos, out=out[..., :half]).addcmul_(second, sin, value=-sign)
    torch.mul(second, cos, out=out[..., half:]).addcmul_(first, sin, value=sign)
    return out


@cache
def _future(t: int, dtype: torch.dtype) -> Float[Tensor, "t t"]:
    """Minus infinity where a key comes after the query."""
    return torch.full((t, t), float("-inf"), dtype=dtype).triu_(1)


_APPROXIMATION = {"gelu": "none", "gelu-tanh": "tanh"}
