"""Weights as int8: a quarter of the bytes, which is what a token costs on a CPU, for a little loss (`gptloom eval --weights int8` tells how much).

A row of a matrix is held as whole numbers from -127 to 127 and one float32 scale (symmetric, rounded to nearest); what
flows through the model stays float32. PyTorch's own product of int8 weights is quick on a CPU for bfloat16 alone, so
few vectors are written in three digits of base 256 instead, a digit an int8, and oneDNN multiplies those exactly: the
result is as near as that of float32 numbers.
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
"""128 in each digit; added and taken away again (by xor), it turns three unsigned bytes into three signed ones."""
LARGEST = 0x7F7F00
"""What a vector's largest number is scaled to.

Three signed digits go up to 0x7F7F7F, which rounding must not pass; float32 has as many bits.
"""
SMALLEST = 1e-30
"""Vectors whose largest number is below this are as good as nothing; larger ones can be scaled to `LARGEST`."""
NARROWEST, WIDEST = 16, 1 << 17
"""Numbers in a vector from which digits pay (of a single one, PyTorch 2.13's product is wrong, too), and up to which a sum of
products of int8 fits an int32: 2^17 times 127 times 128."""
FEW = 12
"""Vectors up to which digits pay; for more it is quicker to make the matrix anew as float32 numbers."""


class Int8Linear(nn.Module):
    """A linear layer whose matrix is held as int8.

    Attributes:
        numbers: (out, in), int8.
        scale: (out,), float32: what one of them stands for; max |w| / 127 of the row.
        bias: (out,), or None.
    """

    def __init__(self, layer: nn.Linear) -> None:
        """Round a layer's matrix; its bias is shared."""
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
        """The matrix as float32 numbers, made anew each time."""
        return torch.mul(self.numbers, self.scale[:, None])

    def forward(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        """As `nn.Linear` with `weight`, which is the reference."""
        if x.numel() <= FEW * self.in_features and self.takes_digits and x.dtype == torch.float32:
            out = digit_product(x.reshape(-1, self.in_features), self.numbers, self.scale).view(*x.shape[:-1], -1)
            return out if self.bias is None else out.add_(self.bias)
        return F.linear(x, self.weight, self.bias)

    @property
    def takes_digits(self) -> bool:
        """Whether this machine multiplies whole numbers exactly, and there are neither too few of these nor too many."""
        return NARROWEST <= self.in_features <= WIDEST and self.numbers.is_cpu and multiplies_integers()

    def _save_to_state_dict(self, *_args: Any) -> None:
        refuse()


def digit_product(
    x: Float[Tensor, "n i"], numbers: Int8[Tensor, "o i"], scale: Float[Tensor, " o"]
) -> Float[Tensor, "n o"]:
    """`x @ (numbers * scale).T`, by products of whole numbers; `x` is rounded to 2^-23 of its row's largest number."""
    largest = x.abs().amax(dim=1, keepdim=True).clamp_min_(SMALLEST)
    whole = (x * (LARGEST / largest)).round_().to(torch.int32).add_(HALVES).bitwise_xor_(HALVES)
    digits = whole.view(torch.int8).view(*x.shape, 4)[..., :DIGITS].movedim(2, 0).reshape(-1, x.shape[1])
    sums: Tensor = torch._int_mm(digits, numbers.t()).view(DIGITS, len(x), -1).float()
    low, middle, high = sums.unbind()
    return high.mul_(65536).add_(middle, alpha=256).add_(low).mul_(largest / LARGEST).mul_(scale)


@cache
def multiplies_integers() -> bool:
    """Whether `digit_product` is right on this machine: older processors' int8 products cut off sums that are too large, so one such is looked at first."""
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
    """The same model with the matrices of all its linear layers as int8, a tied head's too; tables, norms and biases are shared with the given one.

    Raises:
        ConfigError: it is recurrent, or not in the CPU's memory.
    """
    if not isinstance(model, Stack):
        raise ConfigError(
            f"int8 weights are not made for an architecture like {model.config.architecture}",
            where="--weights int8",
            cure="leave it out",
        )
    if model.device.type != "cpu":
        raise ConfigError(
            f"int8 weights are for a CPU, not for {model.device.type}",
            where="--weights int8",
            cure="add --device cpu, or leave it out",
        )
    kept: dict[int, Any] = {id(parameter): parameter for parameter in model.parameters()}
    kept |= {id(layer): Int8Linear(layer) for layer in model.modules() if type(layer) is nn.Linear}
    return copy.deepcopy(model, kept).eval()


def is_quantised(model: nn.Module) -> bool:
    """Whether some of its weights are int8."""
    return any(isinstance(layer, Int8Linear) for layer in model.modules())


def refuse() -> None:
    """ConfigError: int8 weights are not saved."""
    raise ConfigError(
        "int8 weights are for writing and measuring, and are not saved",
        where="weights",
        cure='load it with weights="float32", and save that',
    )
