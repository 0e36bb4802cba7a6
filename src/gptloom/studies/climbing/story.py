"""What a ladder came to: a row for each step, and whether each step did what the lecture says."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gptloom.studies.climbing.lessons import Lesson, Published
from gptloom.studies.climbing.rungs import Rung

COMPARABLE = 0.05
"""A published loss stands beside a measured one when their training tokens differ by at most this share."""


@dataclass(frozen=True)
class Row:
    """A step's figures over all seeds.

    Attributes:
        lesson: the step.
        parameters: trained numbers, or kept counts.
        losses: validation losses, a seed each; one for a step that only counts.
        val_loss: their mean, in nats per token.
        val_loss_sd: their standard deviation; None for fewer than two.
        seconds: of training, mean over seeds.
        bought: how much lower than the base's the loss is, on average over seeds; None where the base was not climbed.
        sample: a text drawn from the first seed's model.
        tokens: trained on.
    """

    lesson: Lesson
    parameters: int
    losses: tuple[float, ...]
    val_loss: float
    val_loss_sd: float | None
    seconds: float
    bought: float | None
    sample: str
    tokens: int

    @property
    def published(self) -> Published | None:
        """A published validation loss of this step after about as many training tokens, if there is one."""
        for one in self.lesson.published:
            if one.tokens is not None and abs(one.tokens - self.tokens) <= COMPARABLE * self.tokens * self.lesson.trains:
                return one
            if one.tokens == 0 and not self.lesson.trains:
                return one
        return None


@dataclass(frozen=True)
class Verdict:
    """Whether a step made it worse.

    Attributes:
        step: its name.
        difference: its loss minus its base's.
        spread: the standard deviation of such a difference over seeds; 0 where there is only one seed.
        worse: the difference is positive and larger than the spread.
        explained: the step's text says why it may be worse.
    """

    step: str
    difference: float
    spread: float
    worse: bool
    explained: bool


def summarise(lessons: Sequence[Lesson], rungs: Mapping[str, Sequence[Rung]]) -> list[Row]:
    """A row for each step, from its rungs in the order of their seeds."""
    rows = []
    for lesson in lessons:
        climbed = rungs[lesson.name]
        losses = tuple(rung.val_loss for rung in climbed)
        below = [rung.val_loss for rung in rungs.get(lesson.base or "", ())]
        rows.append(
            Row(
                lesson=lesson,
                parameters=climbed[0].parameters,
                losses=losses,
                val_loss=statistics.fmean(losses),
                val_loss_sd=statistics.stdev(losses) if len(losses) > 1 else None,
                seconds=statistics.fmean(rung.seconds for rung in climbed),
                bought=statistics.fmean(below) - statistics.fmean(losses) if below else None,
                sample=climbed[0].sample,
                tokens=climbed[0].tokens,
            )
        )
    return rows


def monotone(rows: Sequence[Row]) -> list[Verdict]:
    """For each step with a base: is it worse than that beyond the spread, and does its text say why?

    The losses of one seed belong together, for the seed decides on the data; so the spread is that of the differences. Two or
    three seeds tell little about one step's spread, so a step is held against its own or all steps' (pooled), whichever is
    larger.
    """
    by_name = {row.lesson.name: row for row in rows}
    differences = {row.lesson.name: _differences(row, by_name[row.lesson.base]) for row in rows if row.lesson.base in by_name}
    spreads = {name: statistics.stdev(some) if len(some) > 1 else 0.0 for name, some in differences.items()}
    known = [spreads[name] ** 2 for name, some in differences.items() if len(some) > 1]
    pooled = statistics.fmean(known) ** 0.5 if known else 0.0
    verdicts = []
    for name, some in differences.items():
        difference = statistics.fmean(some)
        spread = max(spreads[name], pooled) if by_name[name].lesson.trains else 0.0
        verdicts.append(Verdict(name, difference, spread, difference > spread, bool(by_name[name].lesson.worse_is_expected)))
    return verdicts


def table(rows: Sequence[Row], width: int) -> list[str]:
    """The rows as lines of at most about `width` characters, the sample cut to what is left."""
    lines = [f"{'step':<14} {'parameters':>10} {'val loss':>8} {'sd':>7} {'bought':>8} {'seconds':>8}  sample"]
    for row in rows:
        spread = "" if row.val_loss_sd is None else f"{row.val_loss_sd:.4f}"
        bought = "" if row.bought is None else f"{row.bought:+.4f}"
        line = f"{row.lesson.name:<14} {row.parameters:>10,} {row.val_loss:>8.4f} {spread:>7} {bought:>8} {row.seconds:>8.1f}  "
        lines.append(line + one_line(row.sample)[: max(20, width - len(line))])
    return lines


def one_line(text: str) -> str:
    """A text on one line, its line ends to be seen."""
    return "".join(character if character.isprintable() else "·" for character in text.strip("\n").replace("\n", "↵"))


def _differences(row: Row, base: Row) -> list[float]:
    """The losses minus the base's, seed by seed; one loss that was only counted stands for all seeds."""
    count = max(len(row.losses), len(base.losses))
    above, below = (losses * count if len(losses) == 1 else losses for losses in (row.losses, base.losses))
    return [one - other for one, other in zip(above, below, strict=True)]
