"""Tolerances of the checks: the effect of rounding on a model is measured by perturbing its weights.

Numerical checks: float32 against float64, an accelerator against the CPU, gradients against finite differences.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gptloom.model.base import LanguageModel
from gptloom.studies.verify.subject import Batch, Subject, gradients, in_double_precision, logits, mean_loss
from gptloom.studies.verify.training import Walk, walk

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


STEPS = (1e-6, 1e-4, 1e-8)
"""Widths of the central differences. They are tried until one agrees.

The error of a difference grows with the square of its width. Rounding makes a narrow difference inaccurate. A kink of
ReLU within the width makes it wrong. A wrong gradient disagrees with all widths."""

RELATIVE = 1e-5
"""Relative tolerance of a central difference.

A difference of width h is off by about h ** 2 = 1e-8 (or 1e-12) times the third derivative. The third derivative may
be a thousand times the first."""

COORDINATES = 2


def precision(subject: Subject) -> Outcome:
    """Compare float32 with float64: the logits of all models, and one training step of the random model."""
    *inputs, _ = subject.ragged_batch()
    found = []
    for model in subject.models:
        expected = logits(in_double_precision(model), *inputs)
        found.append(Outcome(largest([logits(model, *inputs)], [expected]), subject.logit_tolerance, "logits"))
    return worst([*found, *_steps(subject, subject.drawn, subject.exact)])


def accelerator(subject: Subject) -> Outcome | Impossible:
    """Compare the accelerator with the CPU in float32: the logits, and one training step of the random model."""
    if subject.device.type == "cpu":
        return Impossible("the device is the CPU itself")
    *inputs, _ = subject.ragged_batch()
    found = []
    for model in subject.models:
        there = logits(subject.placed(model), *inputs)
        found.append(Outcome(largest([there], [logits(model, *inputs)]), 2 * subject.logit_tolerance, "logits"))
    return worst([*found, *_steps(subject, subject.placed(subject.drawn), subject.drawn)])


def _steps(subject: Subject, one: LanguageModel, other: LanguageModel) -> list[Outcome]:
    """Compare one training step of two equal models: the gradients, and the first-order change of the loss."""
    # Clipping is off. On a CPU, a float32 sum of a million squares is off by 4e-5. This scales all gradients equally
    # and is not an error of the step.
    batch, train = subject.ragged_batch(), subject.config.train.model_copy(update={"warmup_steps": 0, "grad_clip": 0.0})
    found, expected = (walk(model, [batch], train) for model in (one, other))
    tolerance = 2 * subject.slope_tolerance
    grads = Outcome(norms(_values(found), _values(expected)), tolerance, "gradients")
    gap = size = length = stored = 0.0
    count = 0
    for name, slope in expected.gradients[0].items():
        g = slope.cpu().double().abs()
        here, there, start = (w[name].cpu().double() for w in (found.after, expected.after, expected.before))
        gap += float((g * (here - there).abs()).sum())
        size += float((g * (there - start).abs()).sum())
        stored += float((g * start.abs()).sum()) * 2 * SINGLE
        length += float(g.sum())
        count += g.numel()
    # Adam divides a gradient by its size, so an error e of a gradient g changes the step by about e / |g|. Weighted
    # by |g|, this is e. The sum of all |e| is at most sqrt(count) times the norm of e. The weights are rounded, too.
    total = float(torch.stack([torch.linalg.vector_norm(g.cpu().double()) for g in _values(expected)]).norm())
    allowed = 2 * tolerance * total * (count * len(expected.gradients[0])) ** 0.5 / max(length, 1e-300) + stored / max(
        size, 1e-300
    )
    return [grads, Outcome(gap / max(size, 1e-300), allowed, "update")]


def _values(walked: Walk) -> list[Tensor]:
    return list(walked.gradients[0].values())


def gradcheck(subject: Subject) -> Outcome:
    """Compare the float64 gradients of the random model with central differences of its loss.

    Each tensor is tested along one random direction and along `COORDINATES` single coordinates.
    """
    model, batch = subject.exact, subject.batch(rows=2, time=min(16, subject.time))
    exact = gradients(model, batch)
    generator = torch.Generator().manual_seed(subject.seed)
    found = []
    for name, p in model.named_parameters():
        slope = exact[name]
        flat, size = slope.flatten(), float(torch.linalg.vector_norm(slope))
        noise = torch.randn(p.shape, generator=generator, dtype=p.dtype)
        # Half of the direction is along the gradient, so that rounding of the loss does not hide the derivative. The
        # other half is random, so that every coordinate counts.
        direction = noise / noise.norm() + (slope / size if size > 0 else 0.0)
        found.append(_differences(model, p, direction / direction.norm(), slope, batch, name))
        for index in {
            int(flat.abs().argmax()),
            *torch.randint(flat.numel(), (COORDINATES - 1,), generator=generator).tolist(),
        }:
            single = torch.zeros_like(flat)
            single[index] = 1.0
            found.append(_differences(model, p, single.view_as(p), slope, batch, f"{name}[{index}]"))
    return worst(found)


@torch.no_grad()
def _differences(model: LanguageModel, p: Tensor, direction: Tensor, slope: Tensor, batch: Batch, name: str) -> Outcome:
    """Compare a directional derivative with central differences; return the best of `STEPS`.

    The deviation is relative to the norm of the tensor's gradient.
    """
    claimed, start, outcomes = float((direction * slope).sum()), p.clone(), []
    for h in STEPS:
        losses = []
        for sign in (1.0, -1.0):
            p.copy_(start + sign * h * direction)
            losses.append(float(mean_loss(model, batch)))
        p.copy_(start)
        size = float(torch.linalg.vector_norm(slope)) + 1e-12
        rounding = 64 * DOUBLE * abs(losses[0]) / h
        outcomes.append(
            Outcome(abs((losses[0] - losses[1]) / (2 * h) - claimed) / size, RELATIVE + rounding / size, name)
        )
        if outcomes[-1].passed:
            break
    return min(outcomes, key=lambda outcome: outcome.deviation_ratio)
