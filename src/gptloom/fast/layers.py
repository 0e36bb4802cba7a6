"""Forward and backward passes written by hand, for the CPU; `fast/block.py` makes a block of them, and `fast/train.py` a training step.

PyTorch's own passes are many small operations there, each of which asks for memory, and each of which the autograd
engine has to call: on a small model that is most of a training step. Here each part owns its memory, laid out once for
one shape, so that a pass is a list of products and sums into places that are known. N stands for batch times time.

`forward` keeps what `backward` needs. `backward` may overwrite the gradient that it is given, but nothing that was
kept; where it finds gradients of parameters, it replaces what is in their places if they are `fresh`, and else adds to
it.

LayerNorm and RMSNorm by hand, as `handwritten` has the other parts.
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
"""Multiplications of a batch of products up to which the work is less than what it takes to begin it with oneDNN."""


class Linear:
    """A matrix and perhaps a bias.

    Args:
        weight: the matrix.
        bias: or None.
    """

    def __init__(self, weight: Float[Tensor, "o i"], bias: Float[Tensor, " o"] | None) -> None:
        """Take a view of the matrix."""
        self.weight, self.weight_t, self.bias = weight, weight.t(), bias

    def forward(self, x: Float[Tensor, "n i"], out: Float[Tensor, "n o"]) -> None:
        """The product, to `out`."""
        torch.mm(x, self.weight_t, out=out)
        if self.bias is not None:
            out.add_(self.bias)

    def forward_onto(self, stream: Float[Tensor, "n o"], x: Float[Tensor, "n i"], out: Float[Tensor, "n o"]) -> None:
        """The sum of a stream and the product, to `out`, which may be the stream."""
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
        """The gradients of matrix and bias, to `weight` and `bias`, from that of the product and what went into it."""
        if fresh:
            torch.mm(grad.t(), x, out=weight)
        else:
            weight.addmm_(grad.t(), x)
        if bias is not None:
            write_grad_sum(grad, bias, fresh)


def write_grad(found: Tensor, out: Tensor, fresh: bool) -> None:
    """A gradient to its place."""
    if fresh:
        out.copy_(found)
    else:
        out.add_(found)


def write_grad_sum(x: Float[Tensor, "n *c"], out: Float[Tensor, "*c"], fresh: bool) -> None:
    """The sum over the first axis, to its place."""
    if fresh:
        torch.sum(x, 0, out=out)
    else:
        out.add_(x.sum(0))


class Activation:
    """The non-linearity of an MLP by its name in `ModelConfig.mlp`, from what the first matrix made to what the second takes.

    Args:
        kind: the name.
        given: where the first matrix writes.
        out: where the second reads; the same place for relu.
    """

    def __init__(self, kind: str, given: Float[Tensor, "n g"], out: Float[Tensor, "n h"]) -> None:
        """Cut the gate off, where there is one."""
        self.kind, self.given, self.out = kind, given, out
        self.gate, self.value = given.chunk(2, dim=-1) if kind == "swiglu" else (given, given)
        self.how = "tanh" if kind == "gelu-tanh" else "none"

    def forward(self) -> None:
        """From `given` to `out`."""
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
        """From the gradient of `out` to that of `given`; both may lie in one place, except for swiglu."""
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
    """softmax(scale q k^T) v for n heads of n texts (Vaswani et al. 2017, section 3.2.1).

    Args:
        three: where queries, keys and values will lie.
        scale: of the scores.
        causal: whether a query sees only the keys up to its own place.
        scores: memory that anybody may overwrite between two calls.
        values: likewise; what comes out lies here, and the gradient of it is looked for here.
    """

    def __init__(
        self,
        three: Float[Tensor, "3 n t d"],
        scale: float,
        causal: bool,
        scores: Float[Tensor, "n t t"],
        values: Float[Tensor, "n t d"],
    ) -> None:
        """Lay out the memory of the weights, (n, t, t)."""
        self.query, self.key, self.value = three.unbind()
        self.key_t, self.value_t = self.key.transpose(1, 2), self.value.transpose(1, 2)
        self.scale, self.scores, self.values = scale, scores, values
        self.mask = _future(scores.shape[1], scores.dtype, scores.device) if causal else scores.new_zeros(())
        self.weights = torch.empty_like(scores)
        self.scores_t, self.weights_t = scores.transpose(1, 2), self.weights.transpose(1, 2)
        self.products = small_products() if scores.numel() * self.query.shape[-1] <= SMALL_PRODUCTS else nullcontext()

    def forward(self) -> None:
        """From `three` to `values`."""
        with self.products:
            torch.baddbmm(self.mask, self.query, self.key_t, alpha=self.scale, out=self.scores)
            torch._softmax(self.scores, -1, False, out=self.weights)
            torch.bmm(self.weights, self.value, out=self.values)

    def backward(self, out: Sequence[Float[Tensor, "n t d"]]) -> None:
        """From the gradient in `values` to those of queries, keys and values."""
        query, key, value = out
        with self.products:
            torch.bmm(self.values, self.value_t, out=self.scores)
            torch._softmax_backward_data(self.scores, self.weights, -1, self.scores.dtype, grad_input=self.scores)
            torch.baddbmm(query, self.scores, self.key, beta=0.0, alpha=self.scale, out=query)
            torch.baddbmm(key, self.scores_t, self.query, beta=0.0, alpha=self.scale, out=key)
            torch.bmm(self.weights_t, self.values, out=value)


class Rotation:
    """As `layers.rotate`, from one place to another; with sign = -1 the way back, which is also the backward pass."""

    def __init__(
        self,
        cos: Float[Tensor, "t d"],
        sin: Float[Tensor, "t d"],
        sign: float,
        x: Float[Tensor, "*n t d"],
        out: Float[Tensor, "*n t d"],
    ) -> None:
        """Cut everything in halves."""
        half = x.shape[-1] // 2
        self.cos, self.sin, self.sign = cos[:, :half], sin[:, :half], sign
        self.given, self.made = ((y[..., :half], y[..., half:]) for y in (x, out))

    def run(self) -> None:
        """Turn each pair of features."""
        (first, second), (left, right) = self.given, self.made
        torch.mul(first, self.cos, out=left).addcmul_(second, self.sin, value=-self.sign)
        torch.mul(second, self.cos, out=right).addcmul_(first, self.sin, value=self.sign)


@cache
def _future(t: int, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "t t"]:
    """Minus infinity where a key comes after the query."""
    return torch.full((t, t), float("-inf"), dtype=dtype, device=device).triu_(1)


class NormPlan(NamedTuple):
    """A normalisation: LayerNorm, or RMSNorm where there is no mean to take off.

    Attributes:
        centred: LayerNorm.
        eps: under the root.
    """

    centred: bool
    eps: float


class LayerNorm:
    """LayerNorm (Ba et al. 2016). x must stay as it is between the two passes.

    Args:
        eps: under the root.
        weight: the gains.
        bias: or None.
        x: something of the shape that will be normalised.
    """

    def __init__(self, eps: float, weight: Tensor, bias: Tensor | None, x: Float[Tensor, "n c"]) -> None:
        """PyTorch's kernels make the memory of their results themselves."""
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
        """The gradient of x; those of the gains and the bias go to `weight` and `bias`."""
        found = torch.ops.aten.native_layer_norm_backward(
            grad, self.x, self.shape, self.mean, self.rate, self.weight, self.bias, self.mask
        )
        write_grad(found[1], weight, fresh)
        if bias is not None:
            write_grad(found[2], bias, fresh)
        return found[0]  # type: ignore[no-any-return]


class RMSNorm:
    """RMSNorm (Zhang and Sennrich 2019). Once x is normalised, it may be overwritten.

    Args:
        eps: under the root.
        weight: the gains.
        x: something of the shape that will be normalised.
    """

    def __init__(self, eps: float, weight: Tensor, x: Float[Tensor, "n c"]) -> None:
        """Lay out the memory."""
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
        """The gradient of x, in the place of `grad`; that of the gains goes to `weight`."""
        write_grad_sum(grad * self.unit, weight, fresh)
        return rms_backward(grad.mul_(self.weight), self.unit).mul_(self.rate)


def make_norm(plan: NormPlan, weight: Tensor, bias: Tensor | None, x: Float[Tensor, "n c"]) -> LayerNorm | RMSNorm:
    """The normalisation that a plan names."""
    return LayerNorm(plan.eps, weight, bias, x) if plan.centred else RMSNorm(plan.eps, weight, x)


def rms_rate(x: Float[Tensor, "*n c"], eps: float, out: Float[Tensor, "*n 1"]) -> None:
    """1 / sqrt(mean(x ** 2) + eps)."""
    torch.linalg.vector_norm(x, dim=-1, keepdim=True, out=out)
    out.square_().mul_(1.0 / x.shape[-1]).add_(eps).rsqrt_()


def rms_backward(grad: Float[Tensor, "*n c"], unit: Float[Tensor, "*n c"]) -> Float[Tensor, "*n c"]:
    """What of the gradient of `unit` = x * rate stands across it, in its place; times rate it is the gradient of x."""
    along = torch.linalg.vecdot(grad, unit).mul_(-1.0 / unit.shape[-1]).unsqueeze(-1)
    return grad.addcmul_(unit, along)
