"""Linear layers with int8 weights, for sampling and evaluation on a CPU.

The weights need a quarter of the memory, and reading them dominates the time per token. The loss increases a little
(`gptloom eval --weights int8` prints by how much). Quantisation is symmetric, to nearest: integers from -127 to 127 and
one float32 scale per row of the matrix. Activations stay float32.

PyTorch's int8 weight product is fast on a CPU only for bfloat16 activations. Therefore up to `FEW` activation vectors
are converted to integers of three digits in base 256, one int8 per digit, which oneDNN multiplies exactly. The result
is as accurate as a float32 product.
"""

import copy
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int8
from torch import Tensor, nn

from gptloom.errors import ConfigError
from gptloom.model.base import LanguageModel
from gptloom.model.transformer import Stack

DIGITS = 3
HALVES = 0x808080
"""128 in each digit. Adding it and removing it by xor converts three unsigned bytes to three signed bytes."""
LARGEST = 0x7F7F00
"""A vector's largest absolute value is scaled to this integer.

Three signed digits represent at most 0x7F7F7F, which rounding must not exceed. A float32 has as many bits.
"""
SMALLEST = 1e-30
"""A vector whose largest absolute value is below this counts as zero; larger ones can be scaled to `LARGEST`."""
NARROWEST, WIDEST = 16, 1 << 17
"""Limits of the vector size for the product in digits.

Below the minimum it does not pay (and PyTorch 2.13 computes a wrong product for size 1). Up to the maximum, a sum of
int8 products fits into an int32: 2^17 * 127 * 128.
"""
FEW = 12
"""Up to this number of vectors, the product in digits is faster than converting the matrix to float32."""


class Int8Linear(nn.Module):
    """Linear layer with an int8 matrix.

    Attributes:
        numbers: quantised matrix, (out, in), int8.
        scale: max |w| / 127 of each row, (out,), float32; the weight is `numbers` times `scale`.
        bias: (out,), or None.
    """

    def __init__(self, layer: nn.Linear) -> None:
        """Quantise a layer's matrix; the bias is shared with the layer."""
        super().__init__()
        self.out_features, self.in_features = layer.weight.shape
        weight = layer.weight.detach()
        scale = weight.abs().amax(dim=1) / 127
        numbers = (weight / scale.clamp_min(SMALLEST)[:, None]).round_().clamp_(-127, 127).to(torch.int8)
        self.numbers = nn.Parameter(numbers, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.bias = layer.bias

    @property
    def weight(self) -> Float[Tensor, "o i"]:
        """The matrix as float32; every access computes a new tensor."""
        return torch.mul(self.numbers, self.scale[:, None])

    def forward(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        """Compute x W^T + bias. The reference is `nn.Linear` with `weight`."""
        if x.numel() <= FEW * self.in_features and self.takes_digits and x.dtype == torch.float32:
            out = digit_product(x.reshape(-1, self.in_features), self.numbers, self.scale).view(*x.shape[:-1], -1)
            return out if self.bias is None else out.add_(self.bias)
        return F.linear(x, self.weight, self.bias)

    @property
    def takes_digits(self) -> bool:
        """True if this machine multiplies int8 exactly and the matrix has a suitable width."""
        return NARROWEST <= self.in_features <= WIDEST and self.numbers.is_cpu and multiplies_integers()

    def _save_to_state_dict(self, *_args: Any) -> None:
        refuse()


def digit_product(
    x: Float[Tensor, "n i"], numbers: Int8[Tensor, "o i"], scale: Float[Tensor, " o"]
) -> Float[Tensor, "n o"]:
    """Compute `x @ (numbers * scale).T` with integer products.

    `x` is rounded to 2^-23 of the largest absolute value of its row.
    """
    largest = x.abs().amax(dim=1, keepdim=True).clamp_min_(SMALLEST)
    whole = (x * (LARGEST / largest)).round_().to(torch.int32).add_(HALVES).bitwise_xor_(HALVES)
    digits = whole.view(torch.int8).view(*x.shape, 4)[..., :DIGITS].movedim(2, 0).reshape(-1, x.shape[1])
    sums: Tensor = torch._int_mm(digits, numbers.t()).view(DIGITS, len(x), -1).float()
    low, middle, high = sums.unbind()
    return high.mul_(65536).add_(middle, alpha=256).add_(low).mul_(largest / LARGEST).mul_(scale)


@cache
def multiplies_integers() -> bool:
    """Test whether `digit_product` is correct on this machine: int8 products of older processors saturate."""
    if not hasattr(torch, "_int_mm"):
        return False
    signs = torch.linspace(-1.0, 1.0, 64 * 256).mul(1e4).sin().sign().view(64, 256)
    x, numbers = (
        torch.cat((signs[:1], torch.ones(1, 256))),
        torch.cat((torch.ones(1, 256), signs)).mul(127).to(torch.int8),
    )
    found, right = digit_product(x, numbers, torch.ones(len(numbers))), x.double() @ numbers.double().t()
    return bool((found - right).abs().max() < 1e-5 * 127 * 256)


def quantise(model: LanguageModel) -> LanguageModel:
    """Return a copy of the model with int8 matrices in all linear layers, including a tied head.

    Embedding tables, norms and biases are shared with the given model.

    Raises:
        ConfigError: the model is recurrent or not on a CPU.
    """
    if not isinstance(model, Stack):
        raise ConfigError(
            f"int8 weights are not supported for the architecture {model.config.architecture}",
            where="--weights int8",
            cure="omit it",
        )
    if model.device.type != "cpu":
        raise ConfigError(
            f"int8 weights are supported on a CPU, not on {model.device.type}",
            where="--weights int8",
            cure="add --device cpu, or omit it",
        )
    kept: dict[int, Any] = {id(parameter): parameter for parameter in model.parameters()}
    kept |= {id(layer): Int8Linear(layer) for layer in model.modules() if type(layer) is nn.Linear}
    return copy.deepcopy(model, kept).eval()


def is_quantised(model: nn.Module) -> bool:
    """Return True if a layer of the model has int8 weights."""
    return any(isinstance(layer, Int8Linear) for layer in model.modules())


def refuse() -> None:
    """Raise the ConfigError for saving int8 weights."""
    raise ConfigError(
        "int8 weights are for sampling and evaluation; they cannot be saved",
        where="weights",
        cure='load the model with weights="float32" and save that',
    )
