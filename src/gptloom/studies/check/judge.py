"""Compare one class or function of a learner with its reference.

`judge` returns the findings. `dependence` finds out which output position depends on which input position.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from gptloom.errors import nearest
from gptloom.studies.check.exercises import Exercise, Failure, UnknownArgumentError, attempt, build, run
from gptloom.studies.check.formulas import MESSAGES
from gptloom.studies.check.match import Match, Unit, fill, match
from gptloom.studies.check.mutants import rescaled


def dependence(forward: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Bool[Tensor, "t s"], bool]:
    """Change each input position of the first text in turn, and compare the outputs.

    Args:
        forward: a deterministic function from (b, t, ...) to (b, t, ...).
        x: floating-point input (b, t, c), or ids (b, t).

    Returns:
        A matrix (t, t) that tells which output (row) depends on which input (column); and whether other texts change.
    """
    base = forward(x)
    t = x.shape[1]
    seen = torch.zeros(t, t, dtype=torch.bool)
    leaks = False
    for source in range(t):
        changed = x.clone()
        changed[0, source] = (
            (changed[0, source] + 1) % 5 if not x.is_floating_point() else changed[0, source].flip(-1) + 1
        )
        # NaN equals NaN here, so a row that is always NaN depends on nothing.
        moved = ~torch.isclose(forward(changed), base, atol=1e-6, rtol=1e-6, equal_nan=True).flatten(2).all(dim=-1)
        seen[:, source] = moved[0]
        leaks = leaks or bool(moved[1:].any())
    return seen, leaks


def name_dependence(seen: Bool[Tensor, "t s"], leaks: bool, *, causal: bool) -> str:
    """The name of the mistake that this dependence shows; "" if the dependence is right."""
    t = len(seen)
    below, above = torch.ones(t, t).tril(-1).bool(), torch.ones(t, t).triu(1).bool()
    if leaks:
        return "batch-mixed"
    if not causal:
        return "positions-mixed" if bool((seen & (below | above)).any()) else ""
    if bool((seen & above).any()):
        if not (seen & below).any():
            return "mask-upside-down"
        return "mask-off-by-one" if not (seen & above.triu(2)).any() else "mask-sees-future"
    if not seen.diagonal().all():
        return "mask-hides-self"
    return "mask-hides-past" if bool((below & ~seen).any()) else ""


CLOSE = 1e-5
"""Largest difference of equal outputs, whose values are about 1. Outputs of different mistakes differ far more."""


@dataclass(frozen=True)
class Finding:
    """One finding about a learner's code.

    Attributes:
        name: a short name for programs, such as mask-sees-future.
        passed: False if the learner must correct it.
        what: a sentence that describes the finding.
        hint: the correction.
    """

    name: str
    passed: bool
    what: str
    hint: str = ""


def judge(exercise: Exercise, module: ModuleType, path: Path) -> list[Finding]:
    """All findings about the learner's solution of one exercise.

    Args:
        exercise: the exercise.
        module: the learner's imported file.
        path: the file's path, for messages.
    """
    found = next((getattr(module, name) for name in (exercise.name, *exercise.aliases) if hasattr(module, name)), None)
    if found is None:
        kind = "function" if exercise.is_function else "class"
        close = nearest(exercise.name, [name for name in vars(module) if not name.startswith("_")])
        return [
            Finding(
                "missing-class", False, f"the file has no {kind} {exercise.name}", close or f"write {exercise.usage}"
            )
        ]
    return list(_Judge(exercise, path).findings(found))


class _Judge:
    """The checks of one exercise, with its reference and input."""

    def __init__(self, exercise: Exercise, path: Path) -> None:
        self.exercise, self.path = exercise, path
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.reference = exercise.reference()
            if isinstance(self.reference, nn.Module):
                _shake(self.reference)
                self.reference.eval()
        self.x = exercise.source()

    def say(self, name: str, detail: str = "", *, passed: bool = False, hint: str = "") -> Finding:
        """A finding with the text of `MESSAGES` for its name; a variant of a mistake follows its name after a colon."""
        short = name.split(":")[0]
        words, cure = MESSAGES.get(short, ("", ""))
        return Finding(
            short, passed, f"{self.exercise.name}: {words}{': ' if words and detail else ''}{detail}", hint or cure
        )

    def findings(self, found: Any) -> Iterator[Finding]:
        """Yield findings until the solution is confirmed or explained."""
        if self.exercise.is_function:
            if not callable(found):
                yield self.say("not-a-function", "it is not a function", hint=f"write def {self.exercise.usage}")
                return
            yield from self._compare(found, [None])
            return
        if not (isinstance(found, type) and issubclass(found, nn.Module)):
            yield self.say(
                "not-a-module",
                "it is not a class derived from torch.nn.Module",
                hint=f"class {self.exercise.name}(nn.Module)",
            )
            return
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            learner = attempt(lambda: build(found, self.exercise.values()), self.path)
        if isinstance(learner, Failure):
            wrong = learner.error is UnknownArgumentError
            hint = (
                f"it is built as {self.exercise.usage}"
                if wrong
                else f"its constructor raises this when built as {self.exercise.usage}"
            )
            yield self.say("wrong-signature" if wrong else "exception", f"cannot be built: {learner.line}", hint=hint)
            return
        learner.eval()
        matches = match(learner, self.reference)
        complaints = list(self._parameters(learner, matches))
        yield from complaints
        fills: list[Callable[[], None] | None] = [
            partial(fill, learner, pairs) for fit in matches for pairs in fit.assignments
        ]
        yield from self._compare(learner, fills, explained=bool(complaints))
        if self.exercise.dropout:
            yield from self._dropout(learner)

    def _parameters(self, learner: nn.Module, matches: list[Match]) -> Iterator[Finding]:
        fit = matches[0]
        missing, extra = list(fit.missing), list(fit.extra)
        for piece in list(missing):
            # A parameter of the same kind in another shape is one finding, not two.
            other = next((unit for unit in extra if unit.kind == piece.kind), None)
            if other is not None:
                missing.remove(piece)
                extra.remove(other)
                detail = f"{other.weight} has the shape {_seen(learner, other)}; "
                detail += f"the reference's {piece.role} {tuple(piece.weight.shape)}"
                yield self.say("parameter-shape", detail)
        for role in dict.fromkeys(piece.role for piece in missing):
            yield self.say(
                "missing-projection" if role == "projection" else "missing-parameters",
                f"nothing has the shape of {role or 'its weight'}",
            )
        if extra:
            yield self.say("extra-parameters", ", ".join(unit.weight for unit in extra))
        for unit, piece in fit.assignments[0]:
            mine, yours = unit.name or unit.weight, piece.role or "weight"
            if unit.bias and piece.bias is None:
                yield self.say("extra-bias", f"{mine} has one, the reference's {yours} has none")
            if not unit.bias and piece.bias is not None:
                yield self.say("missing-bias", f"{mine} has none, the reference's {yours} has one")
                piece.bias.zero_()  # it changes the reference, so that the rest can still be compared

    def _compare(
        self, learner: Callable[[Tensor], Any], fills: list[Callable[[], None] | None], *, explained: bool = False
    ) -> Iterator[Finding]:
        expected = run(self.reference, self.x)
        outputs: list[Tensor] = []
        for put in fills or [None]:
            if put is not None:
                put()
            out = attempt(partial(run, learner, self.x), self.path)
            if isinstance(out, Failure):
                yield self.say(
                    "exception",
                    f"it stops with {out.line}",
                    hint=f"it is called with a tensor of shape {tuple(self.x.shape)}",
                )
                return
            if out.shape != expected.shape:
                yield self.say("shape", f"{tuple(out.shape)}; the reference's is {tuple(expected.shape)}")
                return
            if not outputs and not _same(out, run(learner, self.x, seed=1)):
                yield self.say("dropout-in-evaluation")
                return
            outputs.append(out)
            if _same(out, expected):
                yield from self._confirm(learner, out, expected)
                return
        yield from self._explain(learner, outputs, expected, explained)

    def _confirm(self, learner: Callable[[Tensor], Any], out: Tensor, expected: Tensor) -> Iterator[Finding]:
        """The outputs are equal at the full length; test shorter inputs, too."""
        for length in (1, self.x.shape[1] - 3):
            short = self.x[:, :length]
            out = attempt(partial(run, learner, short), self.path)
            if isinstance(out, Failure):
                yield self.say("short-context", f"with {length} of {self.x.shape[1]} it stops: {out.line}")
                return
            if not _same(out, run(self.reference, short)):
                yield self.say("short-context", f"with {length} of {self.x.shape[1]} the result differs")
                return
        yield self.say("equal", f"equal to the reference (within {CLOSE:g})", passed=True)

    def _explain(
        self, learner: Callable[[Tensor], Any], outputs: list[Tensor], expected: Tensor, explained: bool
    ) -> Iterator[Finding]:
        """Name the equal mutant, or the result of the probe, or else the size of the difference."""
        slip = self._named(self.reference, outputs)
        if slip:
            yield self.say(slip, passed=slip in self.exercise.accepted)
            return
        # Many learners take the lecture's scale, or none. A second mistake must be found behind that one.
        for first in ("scale-wrong-width", "missing-scale"):
            base = rescaled(self.reference, first) if isinstance(self.reference, nn.Module) else None
            second = self._named(base, outputs) if base is not None else ""
            if second:
                yield self.say(first, passed=first in self.exercise.accepted)
                yield self.say(second)
                return
        name = self._probe(learner)
        if name:
            yield self.say(name)
        elif not explained:
            yield self.say(
                "differs",
                f"by {min((out - expected).abs().max().item() for out in outputs):.2g} at most; its values are about 1",
            )

    def _named(self, reference: Any, outputs: list[Tensor]) -> str:
        """The name of the mutant with one of these outputs, or ""."""
        for slip, mutant in self.exercise.mutants.items():
            wrong = mutant(reference, self.x)
            if any(_same(out, wrong) for out in outputs):
                return slip
        return ""

    def _probe(self, learner: Callable[[Tensor], Any]) -> str:
        past = self.exercise.sees == "past"
        probed = attempt(lambda: dependence(partial(run, learner), self.exercise.source()), self.path)
        return "" if isinstance(probed, Failure) else name_dependence(*probed, causal=past)

    def _dropout(self, learner: nn.Module) -> Iterator[Finding]:
        """Test dropout with a probability of 0.5: whether it is active in training, and where it is."""
        calm, again = (attempt(partial(run, learner, self.x, seed=seed), self.path) for seed in range(2))
        if isinstance(calm, Failure) or not _same(calm, again):
            return  # it has been reported
        if calm.shape != run(self.reference, self.x).shape:
            return  # this, too
        learner.train()
        drawn = [attempt(partial(run, learner, self.x, seed=seed), self.path) for seed in range(4)]
        learner.eval()
        if any(isinstance(out, Failure) for out in drawn):
            return
        if _same(drawn[0], drawn[1]):
            yield self.say("dropout-missing")
            return
        if self.exercise.dropout == "weights":
            # The first position has one weight, 1, which becomes 0 or 2.
            whole = all(
                _same(row, 0 * own) or _same(row, 2 * own)
                for out in drawn
                for row, own in zip(out[:, 0], calm[:, 0], strict=True)
            )
        else:
            share = torch.stack([out == 0 for out in drawn]).float().mean().item()
            whole = 0.4 < share < 0.6
        yield (
            self.say("dropout", "dropout works in training and is off in evaluation", passed=True)
            if whole
            else self.say("dropout-place")
        )


def _shake(reference: nn.Module) -> None:
    """Set weights that show every mistake: matrices with large scores, gains other than 1 and biases other than 0."""
    with torch.no_grad():
        for p in reference.parameters():
            p.copy_(torch.randn_like(p) * (1.5 / p.shape[-1] ** 0.5) if p.ndim > 1 else p + 0.3 * torch.randn_like(p))


def _same(ours: Tensor, theirs: Tensor) -> bool:
    return ours.shape == theirs.shape and torch.allclose(
        ours.float(), theirs.float(), atol=CLOSE, rtol=1e-4, equal_nan=True
    )


def _seen(learner: nn.Module, unit: Unit) -> tuple[int, ...]:
    return tuple(dict(learner.named_parameters())[unit.weight].shape)
