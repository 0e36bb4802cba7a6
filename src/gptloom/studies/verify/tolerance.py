"""How far two ways to the same number may lie apart: what rounding can do to this model, measured instead of guessed."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

SINGLE = 2.0**-24
"""Largest relative error of one float32 rounding."""

DOUBLE = 2.0**-53
"""The same for float64."""

SAFETY = 32.0
"""A product of n terms in float32 gives the exact product of weights that each were moved by a few roundings (Higham 2002, section 3.1: at
most n, about sqrt(n) by chance, fewer where sums are taken in blocks); 32 roundings hold for rows of a thousand terms.
"""

KINKED = 1024.0
"""Instead of `SAFETY` for gradients through ReLU: they jump where an activation changes its sign, so the weights are moved so far
that many do, of which rounding would have moved one at most."""

Numbers = Sequence[Tensor]
Distance = Callable[[Numbers, Numbers], float]


@dataclass(frozen=True)
class Outcome:
    """What a check measured.

    Attributes:
        deviation: how far the two sides lie apart.
        tolerance: how far they may.
        note: where, or between what, when that is not said by the check's name.
    """

    deviation: float
    tolerance: float
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether it is within the tolerance; NaN is not."""
        return self.deviation <= self.tolerance

    @property
    def strain(self) -> float:
        """The deviation in tolerances; infinite for NaN."""
        if math.isnan(self.deviation):
            return math.inf
        return self.deviation / self.tolerance if self.tolerance else math.inf if self.deviation else 0.0


@dataclass(frozen=True)
class Impossible:
    """A check that this machine, or this model, does not allow, and why."""

    reason: str


def worst(outcomes: Iterable[Outcome]) -> Outcome:
    """The outcome nearest to its tolerance, or furthest beyond it."""
    return max(outcomes, key=lambda outcome: outcome.strain)


def largest(found: Numbers, expected: Numbers) -> float:
    """The largest difference of two numbers, relative to the largest number that is expected."""
    gaps = torch.stack(
        [(a.cpu().double() - b.cpu().double()).abs().max() for a, b in zip(found, expected, strict=True)]
    )
    return float(gaps.max()) / max(1e-300, *(float(b.abs().max()) for b in expected))


def norms(found: Numbers, expected: Numbers) -> float:
    """The largest Euclidean distance of two tensors, relative to the length of all that are expected."""
    gaps = torch.stack(
        [torch.linalg.vector_norm(a.cpu().double() - b.cpu().double()) for a, b in zip(found, expected, strict=True)]
    )
    return float(gaps.max()) / max(
        1e-300, float(torch.stack([torch.linalg.vector_norm(b.cpu().double()) for b in expected]).norm())
    )


def stirrer(size: float, seed: int) -> Callable[[Tensor], Tensor]:
    """Multiplies every number by 1 + size or 1 - size, as chance has it."""
    generator = torch.Generator().manual_seed(seed)
    return lambda x: x * (1.0 + size * (2.0 * torch.randint(2, x.shape, generator=generator).to(x) - 1.0))


@contextmanager
def stirred(model: nn.Module, size: float, seed: int) -> Iterator[None]:
    """Every weight moved by a relative `size` for a while."""
    stir, before = stirrer(size, seed), [p.detach().clone() for p in model.parameters()]
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(stir(p))
    try:
        yield
    finally:
        with torch.no_grad():
            for p, old in zip(model.parameters(), before, strict=True):
                p.copy_(old)


def allowance(
    model: nn.Module, measure: Callable[[], Numbers], distance: Distance, *, roundings: float = SAFETY
) -> float:
    """The tolerance in float32 of what `measure` gives for a float64 model: how far it moves when each weight moves by some roundings.

    Depth, width and how sharply this very model reacts are all in it. At least as many roundings of the result itself
    are allowed.
    """
    still = measure()
    moved = [roundings * SINGLE]
    for seed in range(2):
        with stirred(model, roundings * SINGLE, seed):
            moved.append(distance(measure(), still))
    return max(moved)


def in_double(tolerance: float) -> float:
    """A tolerance of float32 as one of float64, whose roundings are 2 ** 29 times finer."""
    return tolerance * DOUBLE / SINGLE
