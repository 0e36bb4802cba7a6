"""Numerical checks: float32 against float64, an accelerator against the CPU, gradients against finite differences."""

import torch
from torch import Tensor

from gptloom.model.base import LanguageModel
from gptloom.studies.verify.subject import Batch, Subject, gradients, in_double_precision, logits, mean_loss
from gptloom.studies.verify.tolerance import DOUBLE, SINGLE, Impossible, Outcome, largest, norms, worst
from gptloom.studies.verify.training import Walk, walk

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
