"""Checks of the forward pass: the formulas, the fused path, the cache, the compiler, and who sees whom."""

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
from gptloom.studies.verify.subject import Subject, drawn_model, gradients, logits, mean_loss
from gptloom.studies.verify.tolerance import DOUBLE, SAFETY, SINGLE, Impossible, Outcome, largest, norms, perturb, worst

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
    """Scores of greedily chosen tokens with a state and without, for even and uneven rows, at both ends of a context."""
    block = subject.model.block_size
    ids = subject.batch(rows=2, time=min(block, len(subject.parts.train) - 1))[-2].clamp(min=0)
    row: list[int] = (ids.flatten().tolist() * (2 * block // ids.numel() + 2))[: 2 * block]
    translates = subject.model.architecture == "encoder-decoder"
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
        scores = model.translate(*inputs) if isinstance(model, EncoderDecoder) else model(*inputs)
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
