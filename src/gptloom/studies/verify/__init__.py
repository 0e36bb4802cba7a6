"""The checks of `gptloom verify`: a table of them, a function that runs them, and the verdict."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from gptloom.config.run import CUSTOM
from gptloom.devices import SMALL_MODEL, is_out_of_memory, threads
from gptloom.errors import ConfigError, GptloomError, MachineError, nearest
from gptloom.fast import why_not
from gptloom.model.loss import Objective
from gptloom.reference.formulas import unknown_field
from gptloom.studies.verify import forward, measurement, runs, training
from gptloom.studies.verify.subject import Subject
from gptloom.studies.verify.tolerance import Impossible, Outcome

FAILURES = (
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    GptloomError,
)
"""Exceptions that broken code may raise. A check that raises one has failed, and its note names the exception."""


@dataclass(frozen=True)
class Check:
    """One claim about a model or its training, and the function that tests it.

    Attributes:
        name: the name on the command line.
        claim: the two things that are compared, in a few words.
        meaning: the consequence if the check fails.
        run: the function that measures the deviation.
        applies: whether the check is meaningful for a model.
    """

    name: str
    claim: str
    meaning: str
    run: Callable[[Subject], Outcome | Impossible]
    applies: Callable[[Subject], bool] = lambda _subject: True


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        name: the check's name.
        claim: the check's claim.
        passed: None where the check is not possible here.
        deviation: the measured difference between the two sides; None if it is not finite.
        tolerance: the largest difference that passes.
        meaning: the consequence of a failure.
        note: the place of the deviation, or the reason why there is none.
        seconds: the time that the check took.
    """

    name: str
    claim: str
    passed: bool | None
    deviation: float | None
    tolerance: float | None
    meaning: str
    note: str
    seconds: float


def _attends(subject: Subject) -> bool:
    return subject.model.mixer == "attention" and not subject.model.is_recurrent and subject.model.n_layer > 0


def _is_by_hand(subject: Subject) -> bool:
    return why_not(Objective(subject.exact)) is None


def _writes(subject: Subject) -> bool:
    return subject.causal and (subject.model.is_recurrent or subject.model.n_layer > 0)


def _reads_text(subject: Subject) -> bool:
    return subject.task.continues


CHECKS = (
    Check(
        "formula",
        "fast model = the papers' formulas",
        "the model is not the one that the settings name",
        forward.formula,
    ),
    Check(
        "fused",
        "fused attention = explicit attention",
        "attention maps do not show what the model does",
        forward.fused,
        _attends,
    ),
    Check("cached", "cached generation = uncached", "texts depend on how they are computed", forward.cached, _writes),
    Check(
        "by-hand",
        "hand-written passes = autograd's",
        "what is learned on a CPU is not what the model computes",
        forward.by_hand,
        _is_by_hand,
    ),
    Check("compiled", "compiled = eager", "compiled runs train another model", forward.compiled),
    Check("precision", "float32 = float64, logits and a step", "rounding changes what is learned", forward.precision),
    Check(
        "accelerator", "accelerator = CPU, logits and a step", "the accelerator computes wrongly", forward.accelerator
    ),
    Check("gradients", "gradients = finite differences", "some weights learn from wrong gradients", forward.gradcheck),
    Check(
        "future",
        "no place sees what comes after it",
        "losses are too good to be true, and texts worse than they promise",
        forward.future,
        lambda s: s.causal,
    ),
    Check(
        "both-sides",
        "every place sees all others",
        "the encoder fills in from one side only",
        forward.both_sides,
        lambda s: not s.causal,
    ),
    Check(
        "micro-batches",
        "k micro-batches = one batch",
        "what is learned depends on the memory of the machine",
        training.micro_batches,
    ),
    Check("ranks", "two ranks = one", "several processes train another model than one", runs.two_ranks),
    Check(
        "fresh-gradients",
        "a step forgets the last one's gradients",
        "steps add up what should be forgotten",
        training.fresh_gradients,
    ),
    Check(
        "clipping",
        "clipping shortens the whole gradient",
        "clipping turns the gradient",
        training.clipping,
        lambda s: s.config.train.grad_clip > 0,
    ),
    Check(
        "learning-rate", "rates follow the schedule", "the run does not keep to its schedule", training.learning_rates
    ),
    Check(
        "update",
        "trainer's steps = the optimizer as published",
        "the optimizer is not the one that the settings name",
        training.update,
    ),
    Check(
        "groups",
        "every weight is in one group, decays if it should",
        "norms and biases shrink, or matrices do not",
        training.groups,
    ),
    Check(
        "initial-loss",
        "first loss = ln(vocabulary)",
        "training begins from confident errors",
        measurement.first_loss,
        lambda s: s.model.init != "pytorch",
    ),
    Check(
        "targets",
        "targets are what the text says",
        "something else is learned than the next token",
        measurement.targets,
    ),
    Check("loss", "reported loss = mean of -ln p", "losses are not what they are called", measurement.loss),
    Check(
        "windows", "evaluation reads every target once", "the validation loss is of another text", measurement.windows
    ),
    Check(
        "evaluation",
        "evaluation draws nothing and repeats itself",
        "validation losses are noisy and too high",
        measurement.evaluation,
    ),
    Check(
        "bits-per-byte",
        "bits per byte count the text's bytes",
        "models with other tokenizers cannot be compared",
        measurement.bits_per_byte,
        _reads_text,
    ),
    Check("tokens", "tokens decode to the text", "the model reads another text than yours", measurement.tokens),
    Check("saved", "saved = loaded, bit for bit", "a checkpoint is not the model that was trained", runs.saved),
    Check("resume", "stopped and resumed = uninterrupted, bit for bit", "a resumed run is another run", runs.resumed),
)


def chosen(names: Sequence[str] | None) -> list[Check]:
    """Select checks by name, in the order of `CHECKS`; None selects all.

    Raises:
        ConfigError: there is no check of this name.
    """
    known = {check.name: check for check in CHECKS}
    for name in names or ():
        if name not in known:
            raise ConfigError(
                f"there is no check {name!r}",
                where="--checks",
                cure=nearest(name, known) or f"choose from {', '.join(known)}",
            )
    return [check for check in CHECKS if names is None or check.name in names]


def verify(subject: Subject, checks: Sequence[Check] = CHECKS) -> Iterator[Finding]:
    """Run the checks that apply, one after another.

    Raises:
        MachineError: there is not enough memory or disk space.
    """
    with torch.random.fork_rng(), threads(1 if subject.bundle.model.parameter_count() < SMALL_MODEL else None):
        for check in checks:
            if check.applies(subject):
                yield _run(check, subject)


def passed(findings: Sequence[Finding]) -> bool:
    """Whether no check has failed; a check that was not possible does not count as failed."""
    return all(finding.passed is not False for finding in findings)


def _run(check: Check, subject: Subject) -> Finding:
    start = time.perf_counter()
    strange = unknown_field(subject.model)
    outcome: Outcome | Impossible
    try:
        if strange is not None and check.run in (forward.formula, measurement.loss):
            outcome = Impossible(f"{strange} is not known to the formulas (gptloom.reference.formulas)")
        else:
            outcome = check.run(subject)
    except MachineError:
        raise
    except FAILURES as error:
        custom = subject.config.train.optimizer == CUSTOM and isinstance(error, ConfigError)
        if is_out_of_memory(error):
            raise MachineError(
                f"the memory did not suffice for {check.name}", cure="verify on --device cpu, or a smaller model"
            ) from None
        outcome = (
            Impossible("the run was trained with an optimizer of a Python program")
            if custom
            else Outcome(math.nan, 0.0, f"{type(error).__name__}: {' '.join(str(error).split())[:150]}")
        )
    seconds = time.perf_counter() - start
    if isinstance(outcome, Impossible):
        return Finding(check.name, check.claim, None, None, None, check.meaning, outcome.reason, seconds)
    deviation = outcome.deviation if math.isfinite(outcome.deviation) else None
    note = "" if outcome.passed else outcome.note
    return Finding(check.name, check.claim, outcome.passed, deviation, outcome.tolerance, check.meaning, note, seconds)
