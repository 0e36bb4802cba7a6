"""Checks of the forward pass: the formulas, the fused path, the cache, the compiler, and who sees whom.

Numerical checks: float32 against float64, an accelerator against the CPU, gradients against finite differences.
"""

import logging
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from gptloom.config.run import SampleConfig
from gptloom.fast.train import TrainingPass, straight_pass
from gptloom.generate.batch import DecodeBatch
from gptloom.generate.seq2seq import condition
from gptloom.model.base import LanguageModel, evaluating
from gptloom.model.cache import Context, Trace
from gptloom.model.loss import Objective
from gptloom.model.transformer import EncoderDecoder
from gptloom.reference.formulas import Reference
from gptloom.studies.verify.subject import (
    Batch,
    Subject,
    drawn_model,
    gradients,
    in_double_precision,
    logits,
    mean_loss,
)
from gptloom.studies.verify.tolerance import DOUBLE, SAFETY, SINGLE, Impossible, Outcome, largest, norms, perturb, worst
from gptloom.studies.verify.training import Walk, walk

SHORT = 24
"""Tokens of a text in which every pair of places is looked at."""

Sources = Sequence[Sequence[int]] | None


def formula(subject: Subject) -> Outcome:
    """Logits of the fast model against those of the papers' formulas."""
    *inputs, _ = subject.ragged_batch()
    found = []
    for model in subject.models:
        expected = Reference(subject.model, model).logits(*inputs)
        # The model's tables hold float32 angles, so the tolerance is what stirring weights and angles does to the
        # formulas themselves.
        moved = [Reference(subject.model, model, perturb(SAFETY * SINGLE, seed)).logits(*inputs) for seed in range(2)]
        tolerance = max(SAFETY * SINGLE, *(largest([one], [expected]) for one in moved))
        found.append(Outcome(largest([logits(model, *inputs)], [expected]), tolerance))
    return worst(found)


def fused(subject: Subject) -> Outcome:
    """Logits where attention is one fused kernel against those where its weights are spelled out for a trace."""
    *inputs, _ = subject.ragged_batch()
    found = []
    for model in map(subject.placed, subject.models):
        here = [ids.to(model.device) for ids in inputs]
        with torch.no_grad():
            memory = model.encode(here[0], Context(trace=Trace())) if isinstance(model, EncoderDecoder) else None
            explicit = model.unembed(model.forward_hidden(here[-1], Context(trace=Trace(), memory=memory)))
        found.append(Outcome(largest([logits(model, *inputs)], [explicit]), 2 * subject.logit_tolerance))
    return worst(found)


def cached(subject: Subject) -> Outcome:
    """Compare logits with and without a cache, for even and uneven rows, at both ends of a context."""
    block = subject.model.block_size
    ids = subject.batch(rows=2, time=min(block, len(subject.parts.train) - 1))[-2].clamp(min=0)
    row: list[int] = (ids.flatten().tolist() * (2 * block // ids.numel() + 2))[: 2 * block]
    translates = subject.task.pairs
    near = max(1, block - 3)
    # A translation never slides: its window is as long as its longest target.
    trips = [
        ([1, 1], min(10, block - 1)),
        ([1, 3, 2], min(6, block - 3)),
        ([near, near], min(3, block - near) if translates else 6),
    ]
    if not translates:
        trips += [([near, max(1, near - 2)], 8), ([1], min(10, block - 1)), ([2] * 8, min(3, block - 2))]
    found = []
    for model in map(subject.placed, subject.models):
        for lengths, steps in trips:
            if steps < 1:
                continue
            sources = [row[: 3 + 2 * number] for number in range(len(lengths))] if translates else None
            starts = [row[number : number + length] for number, length in enumerate(lengths)]
            found.append(
                Outcome(
                    _both_ways(model, starts, steps, sources),
                    2 * subject.logit_tolerance,
                    f"rows of {', '.join(map(str, lengths))} tokens",
                )
            )
    return worst(found)


def _both_ways(model: LanguageModel, starts: Sequence[Sequence[int]], steps: int, sources: Sources) -> float:
    """The largest difference of scores on the way; the uncached side chooses the tokens."""
    reader = condition(model, sources) if isinstance(model, EncoderDecoder) and sources else model
    with evaluating(reader), torch.inference_mode():
        quick, slow = (DecodeBatch(reader, cached=cached, compare=False) for cached in (True, False))
        for batch in (quick, slow):
            batch.extend(starts, SampleConfig(tokens=steps))
        gaps = []
        for _ in range(steps):
            found, expected = quick.logits(), slow.logits()
            gaps.append(largest([found], [expected]))
            chosen = expected.argmax(-1).tolist()
            quick.append(chosen)
            slow.append(chosen)
    return float(torch.tensor(gaps, dtype=torch.float64).max())


def by_hand(subject: Subject) -> Outcome:
    """Loss and gradients through the training pass written by hand against autograd's, in float64 on the CPU.

    The pass is asked directly: a training would leave a pass that fails its comparison alone, and hide what is looked
        for here.
    """
    inputs, targets = (part.clamp(min=0) for part in subject.batch())
    model, share = subject.exact, 1.0 / targets.numel()
    objective = Objective(model)
    found = []
    for both in (straight_pass(objective), TrainingPass(objective, model.zero_grad).by_autograd):
        model.zero_grad(set_to_none=True)
        nats = both((inputs, targets), share, True)
        found.append([nats * share, *_slopes(model)])
    model.zero_grad(set_to_none=True)
    quick, plain = found
    gradients = Outcome(norms(quick[1:], plain[1:]), subject.double_tolerance, "gradients of a step")
    return worst([gradients, Outcome(norms(quick[:1], plain[:1]), SAFETY * DOUBLE, "loss of a step")])


def _slopes(model: nn.Module) -> list[Tensor]:
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]


def compiled(subject: Subject) -> Outcome | Impossible:
    """Loss and gradients through torch.compile against those without."""
    # One block, for the compiler needs a quarter of a minute for each, and all are alike.
    shape = subject.model.model_copy(update={"n_layer": min(1, subject.model.n_layer)})
    model = subject.placed(drawn_model(shape, subject.seed))
    batch = tuple(part.to(model.device) for part in subject.ragged_batch())
    expected = gradients(model, batch)
    with torch.no_grad():
        loss = float(mean_loss(model, batch))
    torch._dynamo.reset()
    logging.disable(logging.WARNING)  # the compiler's remarks on where it had to go back to Python
    try:
        objective = cast(nn.Module, torch.compile(Objective(model)))
        nats, count = objective(*batch)
        (nats / count).backward()
    except (RuntimeError, ImportError, OSError) as error:
        return Impossible(f"torch.compile failed: {' '.join(str(error).split())[:100]}")
    finally:
        logging.disable(logging.NOTSET)
        torch._dynamo.reset()
    found = [cast(Tensor, p.grad) for p in model.parameters()]
    logit = subject.logit_tolerance * float(logits(model, *batch[:-1]).abs().max())
    return worst(
        [
            Outcome(norms(found, list(expected.values())), 2 * subject.slope_tolerance, "gradients"),
            Outcome(abs(float(nats.detach() / count) - loss), 4 * logit, "loss"),
        ]
    )


def future(subject: Subject) -> Outcome:
    """How many pairs of places are wrong: something seen before its turn, or something earlier not seen at all."""
    seen, inputs = _influence(subject)
    t = seen.shape[0]
    past = torch.ones(t, t, dtype=torch.bool).tril()
    # Without exchange between places, each sees its own token only.
    must = torch.eye(t, dtype=torch.bool) if subject.model.mixer == "none" or not subject.model.n_layer else past
    wrong = int((seen & ~past).sum()) + int((must & ~seen).sum() if not subject.model.is_recurrent else 0)
    note = f"{int((seen & ~past).sum())} pairs of places look ahead"
    return Outcome(float(wrong + _changes_before(subject, inputs)), 0.0, note if wrong else "")


def both_sides(subject: Subject) -> Outcome:
    """How many pairs of places of an encoder do not see each other."""
    seen, _ = _influence(subject)
    return Outcome(float((~seen).sum()), 0.0)


def _influence(subject: Subject) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Whether the logits at each place (rows) depend on the embedding of each (columns), by gradients; and the ids."""
    model = subject.exact
    *inputs, _ = (part[:1, :SHORT] for part in subject.batch())
    inputs = [ids.clamp(min=0) for ids in inputs]
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _given: object, out: Tensor) -> Tensor:
        kept.append(out.detach().requires_grad_())
        return kept[-1]

    hook = model.token_table.register_forward_hook(keep)
    try:
        scores = model(*inputs)
    finally:
        hook.remove()
    weights = torch.randn(scores.shape, generator=torch.Generator().manual_seed(subject.seed), dtype=scores.dtype)
    seen = []
    for place in range(scores.shape[1]):
        (slope,) = torch.autograd.grad((scores * weights)[0, place].sum(), kept[-1], retain_graph=True)
        seen.append(slope[0].abs().amax(-1) > 0)
    return torch.stack(seen), tuple(inputs)


def _changes_before(subject: Subject, inputs: tuple[Tensor, ...]) -> int:
    """Places whose logits change, by any bit, when only tokens after them do; on the model's device."""
    model, changed = subject.placed(subject.drawn), 0
    *sources, ids = inputs
    before = logits(model, *sources, ids)
    for place in range(ids.shape[1] - 1):
        other = ids.clone()
        other[:, place + 1 :] = (other[:, place + 1 :] + 1) % subject.model.vocab_size
        changed += int(not torch.equal(logits(model, *sources, other)[:, : place + 1], before[:, : place + 1]))
    return changed


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
