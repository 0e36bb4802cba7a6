"""LayerNorm and RMSNorm by hand, as `handwritten` has the other parts."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from gptloom.model import handwritten as by_hand


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

    def backward(self, grad: Float[Tensor, "n c"], weight: Tensor, bias: Tensor | None, fresh: bool) -> Float[Tensor, "n c"]:
        """The gradient of x; those of the gains and the bias go to `weight` and `bias`."""
        found = torch.ops.aten.native_layer_norm_backward(grad, self.x, self.shape, self.mean, self.rate, self.weight, self.bias, self.mask)
        by_hand.put(found[1], weight, fresh)
        if bias is not None:
            by_hand.put(found[2], bias, fresh)
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

    def backward(self, grad: Float[Tensor, "n c"], weight: Tensor, _bias: Tensor | None, fresh: bool) -> Float[Tensor, "n c"]:
        """The gradient of x, in the place of `grad`; that of the gains goes to `weight`."""
        by_hand.put_sum(grad * self.unit, weight, fresh)
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
