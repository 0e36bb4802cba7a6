"""Tolerances of the checks: the effect of rounding on a model is measured by perturbing its weights."""

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
"""Relative perturbation of the weights, in roundings, that stands for the rounding errors of a pass.

A float32 dot product of n terms equals the exact product with perturbed weights (Higham 2002, section 3.1). The
perturbation is at most n roundings, about sqrt(n) for random errors, and less for blocked sums. 32 roundings suffice
for rows of a thousand terms."""

RELU_SAFETY = 1024.0
"""Replaces `SAFETY` for gradients through ReLU.

Such a gradient jumps where an activation changes its sign. Rounding changes at most one sign; this perturbation changes
many."""

Numbers = Sequence[Tensor]
Distance = Callable[[Numbers, Numbers], float]


@dataclass(frozen=True)
class Outcome:
    """The measured deviation of a check, and its tolerance.

    Attributes:
        deviation: the difference between the two sides.
        tolerance: the largest difference that passes.
        note: the place of the difference, if the check's name does not tell it.
    """

    deviation: float
    tolerance: float
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether it is within the tolerance; NaN is not."""
        return self.deviation <= self.tolerance

    @property
    def deviation_ratio(self) -> float:
        """The deviation divided by the tolerance; infinite for NaN."""
        if math.isnan(self.deviation):
            return math.inf
        return self.deviation / self.tolerance if self.tolerance else math.inf if self.deviation else 0.0


@dataclass(frozen=True)
class Impossible:
    """The result of a check that this machine or model does not allow; it holds the reason."""

    reason: str


def worst(outcomes: Iterable[Outcome]) -> Outcome:
    """The outcome with the largest ratio of deviation to tolerance."""
    return max(outcomes, key=lambda outcome: outcome.deviation_ratio)


def largest(found: Numbers, expected: Numbers) -> float:
    """The largest absolute difference of two numbers, relative to the largest absolute expected number."""
    gaps = torch.stack(
        [(a.cpu().double() - b.cpu().double()).abs().max() for a, b in zip(found, expected, strict=True)]
    )
    return float(gaps.max()) / max(1e-300, *(float(b.abs().max()) for b in expected))


def norms(found: Numbers, expected: Numbers) -> float:
    """The largest Euclidean distance of two tensors, relative to the norm of all expected tensors together."""
    gaps = torch.stack(
        [torch.linalg.vector_norm(a.cpu().double() - b.cpu().double()) for a, b in zip(found, expected, strict=True)]
    )
    return float(gaps.max()) / max(
        1e-300, float(torch.stack([torch.linalg.vector_norm(b.cpu().double()) for b in expected]).norm())
    )


def perturb(size: float, seed: int) -> Callable[[Tensor], Tensor]:
    """Return a function that multiplies every number by 1 + size or 1 - size at random."""
    generator = torch.Generator().manual_seed(seed)
    return lambda x: x * (1.0 + size * (2.0 * torch.randint(2, x.shape, generator=generator).to(x) - 1.0))


@contextmanager
def perturbed(model: nn.Module, size: float, seed: int) -> Iterator[None]:
    """Perturb every weight by a relative `size` within a with block."""
    change, before = perturb(size, seed), [p.detach().clone() for p in model.parameters()]
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(change(p))
    try:
        yield
    finally:
        with torch.no_grad():
            for p, old in zip(model.parameters(), before, strict=True):
                p.copy_(old)


def allowance(
    model: nn.Module, measure: Callable[[], Numbers], distance: Distance, *, roundings: float = SAFETY
) -> float:
    """The float32 tolerance of a result: its change when each weight of a float64 model is perturbed by some roundings.

    The change depends on the model's depth, width and sensitivity. The tolerance is at least `roundings` roundings of
    the result.

    Args:
        model: the float64 model.
        measure: returns the result, computed with the model.
        distance: the relative distance of two results.
        roundings: the size of the perturbation, in float32 roundings.
    """
    still = measure()
    moved = [roundings * SINGLE]
    for seed in range(2):
        with perturbed(model, roundings * SINGLE, seed):
            moved.append(distance(measure(), still))
    return max(moved)


def in_double(tolerance: float) -> float:
    """Convert a float32 tolerance into a float64 tolerance; float64 roundings are 2 ** 29 times smaller."""
    return tolerance * DOUBLE / SINGLE
