"""Hand-written forward and backward passes of single layers on a CPU: linear, activation, attention, rotation, norms.

`fast/block.py` combines them to a block, and `fast/train.py` to a training step. With autograd, each of many small
operations allocates memory and is called by the engine; for a small model that is most of a training step. Here each
layer allocates its memory once for one shape, and a pass writes its results there. In shapes, n is batch times time.

`forward` stores what `backward` needs. `backward` may overwrite its incoming gradient, but no stored tensor. It writes
parameter gradients: `fresh` replaces the old values, otherwise it adds to them.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from gptloom.devices import small_products

SMALL_PRODUCTS = 2_000_000
"""Up to this number of multiplications in a batched product, oneDNN's start-up takes longer than the product."""


class Linear:
    """Linear layer.

    Args:
        weight: matrix, (out, in).
        bias: vector, (out,), or None.
    """

    def __init__(self, weight: Float[Tensor, "o i"], bias: Float[Tensor, " o"] | None) -> None:
        """Store the parameters and a transposed view of the matrix."""
        self.weight, self.weight_t, self.bias = weight, weight.t(), bias

    def forward(self, x: Float[Tensor, "n i"], out: Float[Tensor, "n o"]) -> None:
        """Write x W^T + bias to `out`."""
        torch.mm(x, self.weight_t, out=out)
        if self.bias is not None:
            out.add_(self.bias)

    def forward_onto(self, stream: Float[Tensor, "n o"], x: Float[Tensor, "n i"], out: Float[Tensor, "n o"]) -> None:
        """Write stream + x W^T + bias to `out`, which may be `stream`."""
        if self.bias is None:
            torch.addmm(stream, x, self.weight_t, out=out)
        else:
            torch.add(stream, self.bias, out=out).addmm_(x, self.weight_t)

    def accumulate_grad(
        self,
        grad: Float[Tensor, "n o"],
        x: Float[Tensor, "n i"],
        weight: Float[Tensor, "o i"],
        bias: Float[Tensor, " o"] | None,
        fresh: bool,
    ) -> None:
        """Write the gradients of the parameters to `weight` and `bias`; `grad` is the output's, `x` the input."""
        if fresh:
            torch.mm(grad.t(), x, out=weight)
        else:
            weight.addmm_(grad.t(), x)
        if bias is not None:
            write_grad_sum(grad, bias, fresh)


def write_grad(found: Tensor, out: Tensor, fresh: bool) -> None:
    """Copy a gradient to `out` (`fresh`) or add it."""
    if fresh:
        out.copy_(found)
    else:
        out.add_(found)


def write_grad_sum(x: Float[Tensor, "n *c"], out: Float[Tensor, "*c"], fresh: bool) -> None:
    """Write the sum over the first axis to `out` (`fresh`) or add it."""
    if fresh:
        torch.sum(x, 0, out=out)
    else:
        out.add_(x.sum(0))


class Activation:
    """Activation function of an MLP.

    Args:
        kind: its name in `ModelConfig.mlp`.
        given: input: the first matrix writes its result here.
        out: output: the second matrix reads it; the same tensor as `given` for relu.
    """

    def __init__(self, kind: str, given: Float[Tensor, "n g"], out: Float[Tensor, "n h"]) -> None:
        """Split the input into gate and value for swiglu."""
        self.kind, self.given, self.out = kind, given, out
        self.gate, self.value = given.chunk(2, dim=-1) if kind == "swiglu" else (given, given)
        self.how = "tanh" if kind == "gelu-tanh" else "none"

    def forward(self) -> None:
        """Compute `out` from `given`."""
        match self.kind:
            case "relu":
                self.out.relu_()
            case "relu2":
                torch.square(self.given.relu_(), out=self.out)
            case "swiglu":
                torch.ops.aten.silu.out(self.gate, out=self.out).mul_(self.value)
            case _:
                torch.ops.aten.gelu.out(self.given, approximate=self.how, out=self.out)

    def backward(self, grad: Float[Tensor, "n h"], out: Float[Tensor, "n g"]) -> None:
        """Compute the gradient of `given` in `out`, given that of the output; may be in place, except for swiglu."""
        aten = torch.ops.aten
        match self.kind:
            case "relu":
                aten.threshold_backward.grad_input(grad, self.out, 0.0, grad_input=out)
            case "relu2":
                torch.mul(grad, self.given, out=out).mul_(2.0)
            case "swiglu":
                left, right = out.chunk(2, dim=-1)
                torch.mul(grad, torch.ops.aten.silu(self.gate), out=right)
                aten.silu_backward.grad_input(grad.mul_(self.value), self.gate, grad_input=left)
            case _:
                aten.gelu_backward.grad_input(grad, self.given, approximate=self.how, grad_input=out)


class Attention:
    """softmax(scale q k^T) v for n = heads times rows (Vaswani et al. 2017, section 3.2.1).

    Args:
        three: tensor with queries, keys and values; the caller fills it before `forward`.
        scale: factor of the scores.
        causal: True if a query sees only the keys up to its position.
        scores: scratch memory; others may overwrite it between two calls.
        values: scratch memory for the output of `forward` and its gradient, the input of `backward`.
    """

    def __init__(
        self,
        three: Float[Tensor, "3 n t d"],
        scale: float,
        causal: bool,
        scores: Float[Tensor, "n t t"],
        values: Float[Tensor, "n t d"],
    ) -> None:
        """Allocate the attention weights, (n, t, t)."""
        self.query, self.key, self.value = three.unbind()
        self.key_t, self.value_t = self.key.transpose(1, 2), self.value.transpose(1, 2)
        self.scale, self.scores, self.values = scale, scores, values
        self.mask = _future(scores.shape[1], scores.dtype, scores.device) if causal else scores.new_zeros(())
        self.weights = torch.empty_like(scores)
        self.scores_t, self.weights_t = scores.transpose(1, 2), self.weights.transpose(1, 2)
        self.products = small_products() if scores.numel() * self.query.shape[-1] <= SMALL_PRODUCTS else nullcontext()

    def forward(self) -> None:
        """Compute `values` from `three`."""
        with self.products:
            torch.baddbmm(self.mask, self.query, self.key_t, alpha=self.scale, out=self.scores)
            torch._softmax(self.scores, -1, False, out=self.weights)
            torch.bmm(self.weights, self.value, out=self.values)

    def backward(self, out: Sequence[Float[Tensor, "n t d"]]) -> None:
        """Write the gradients of queries, keys and values to `out`, given that of the output in `values`."""
        query, key, value = out
        with self.products:
            torch.bmm(self.values, self.value_t, out=self.scores)
            torch._softmax_backward_data(self.scores, self.weights, -1, self.scores.dtype, grad_input=self.scores)
            torch.baddbmm(query, self.scores, self.key, beta=0.0, alpha=self.scale, out=query)
            torch.baddbmm(key, self.scores_t, self.query, beta=0.0, alpha=self.scale, out=key)
            torch.bmm(self.weights_t, self.values, out=value)


class Rotation:
    """Rotary embedding as in `layers.rotate`, from `x` to `out`.

    With sign = -1 it is the inverse, which is also the backward pass.
    """

    def __init__(
        self,
        cos: Float[Tensor, "t d"],
        sin: Float[Tensor, "t d"],
        sign: float,
        x: Float[Tensor, "*n t d"],
        out: Float[Tensor, "*n t d"],
    ) -> None:
        """Create views of the halves."""
        half = x.shape[-1] // 2
        self.cos, self.sin, self.sign = cos[:, :half], sin[:, :half], sign
        self.given, self.made = ((y[..., :half], y[..., half:]) for y in (x, out))

    def run(self) -> None:
        """Rotate each pair of features."""
        (first, second), (left, right) = self.given, self.made
        torch.mul(first, self.cos, out=left).addcmul_(second, self.sin, value=-self.sign)
        torch.mul(second, self.cos, out=right).addcmul_(first, self.sin, value=self.sign)


@cache
def _future(t: int, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "t t"]:
    """Return the additive causal mask: minus infinity where a key comes after the query, otherwise 0."""
    return torch.full((t, t), float("-inf"), dtype=dtype, device=device).triu_(1)


class NormPlan(NamedTuple):
    """Kind of a norm.

    Attributes:
        centred: True for LayerNorm, False for RMSNorm.
        eps: added under the root.
    """

    centred: bool
    eps: float


class LayerNorm:
    """LayerNorm (Ba et al. 2016). The input must not change between the two passes.

    Args:
        eps: added under the root.
        weight: gains, (c,).
        bias: (c,), or None.
        x: example of the input; only its shape is used.
    """

    def __init__(self, eps: float, weight: Tensor, bias: Tensor | None, x: Float[Tensor, "n c"]) -> None:
        """Store the parameters. PyTorch's kernels allocate their results, so no memory is allocated here."""
        self.eps, self.weight, self.bias, self.shape = eps, weight, bias, x.shape[-1:]
        self.mask = [True, True, bias is not None]

    def forward(self, x: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """Normalise."""
        self.x = x
        out, self.mean, self.rate = torch.native_layer_norm(x, self.shape, self.weight, self.bias, self.eps)
        return out

    def backward(
        self, grad: Float[Tensor, "n c"], weight: Tensor, bias: Tensor | None, fresh: bool
    ) -> Float[Tensor, "n c"]:
        """Return the gradient of the input; write those of gains and bias to `weight` and `bias`."""
        found = torch.ops.aten.native_layer_norm_backward(
            grad, self.x, self.shape, self.mean, self.rate, self.weight, self.bias, self.mask
        )
        write_grad(found[1], weight, fresh)
        if bias is not None:
            write_grad(found[2], bias, fresh)
        return found[0]  # type: ignore[no-any-return]


class RMSNorm:
    """RMSNorm (Zhang and Sennrich 2019). The input may be overwritten after the forward pass.

    Args:
        eps: added under the root.
        weight: gains, (c,).
        x: example of the input; only its shape, dtype and device are used.
    """

    def __init__(self, eps: float, weight: Tensor, x: Float[Tensor, "n c"]) -> None:
        """Allocate the memory."""
        self.eps, self.weight = eps, weight
        self.unit, self.out, self.rate = torch.empty_like(x), torch.empty_like(x), x.new_empty(*x.shape[:-1], 1)

    def forward(self, x: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """Normalise."""
        rms_rate(x, self.eps, self.rate)
        torch.mul(x, self.rate, out=self.unit)
        return torch.mul(self.unit, self.weight, out=self.out)

    def backward(
        self, grad: Float[Tensor, "n c"], weight: Tensor, _bias: Tensor | None, fresh: bool
    ) -> Float[Tensor, "n c"]:
        """Return the gradient of the input, in the memory of `grad`; write that of the gains to `weight`."""
        write_grad_sum(grad * self.unit, weight, fresh)
        return rms_backward(grad.mul_(self.weight), self.unit).mul_(self.rate)


def make_norm(plan: NormPlan, weight: Tensor, bias: Tensor | None, x: Float[Tensor, "n c"]) -> LayerNorm | RMSNorm:
    """Build the norm of a plan."""
    return LayerNorm(plan.eps, weight, bias, x) if plan.centred else RMSNorm(plan.eps, weight, x)


def rms_rate(x: Float[Tensor, "*n c"], eps: float, out: Float[Tensor, "*n 1"]) -> None:
    """Write 1 / sqrt(mean(x ** 2) + eps) to `out`."""
    torch.linalg.vector_norm(x, dim=-1, keepdim=True, out=out)
    out.square_().mul_(1.0 / x.shape[-1]).add_(eps).rsqrt_()


def rms_backward(grad: Float[Tensor, "*n c"], unit: Float[Tensor, "*n c"]) -> Float[Tensor, "*n c"]:
    """Remove from the gradient of `unit` = x * rate the part parallel to `unit`, in place.

    The result times rate is the gradient of x.
    """
    along = torch.linalg.vecdot(grad, unit).mul_(-1.0 / unit.shape[-1]).unsqueeze(-1)
    return grad.addcmul_(unit, along)
