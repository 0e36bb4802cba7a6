"""From the losses of paired trainings to a verdict in words. The rule is that of `statistics`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gptloom.studies.comparing.statistics import FEWEST_SEEDS, LEVEL, MOST_SEEDS, Estimate, estimate, holm, seeds_needed

Decision = Literal["better", "worse", "noise", "same", "too few", "diverged"]

SAME = 5e-5
"""Differences below this, in every pair, do not show in four decimals; what rounding does is not called better or worse."""

RULE = (
    f"A difference is called one where the two-sided paired t-test, corrected for the number of arms (Holm), gives p <= {LEVEL:g}, "
    "half of that for each later look with more seeds. The intervals are 95 % t intervals, each on its own."
)


@dataclass(frozen=True)
class Judged:
    """What the pairs of one arm and its baseline say.

    Attributes:
        differences: arm minus baseline for each seed, negative where the arm is better; None where a training diverged.
        estimate: mean and interval, where all pairs are there and they are two at least.
        p: Holm's adjusted p-value, or None.
        decision: one word.
        more_seeds: about how many more seeds would decide, where that is foreseeable.
        verdict: the words.
    """

    differences: list[float | None]
    estimate: Estimate | None
    p: float | None
    decision: Decision
    more_seeds: int | None
    verdict: str


def judge(arms: Sequence[Sequence[float | None]], baseline: Sequence[float | None], level: float = LEVEL) -> list[Judged]:
    """A verdict for every arm.

    Args:
        arms: for each arm its loss by seed; None where the training diverged.
        baseline: the baseline's loss by seed, in the same order.
        level: of the whole family of arms.
    """
    differences = [[None if a is None or b is None else a - b for a, b in zip(arm, baseline, strict=True)] for arm in arms]
    numbers = [[one for one in row if one is not None] for row in differences]
    estimates = [estimate(row) if len(row) == len(baseline) > 1 else None for row in numbers]
    p_values = holm([1.0 if one is None else one.p for one in estimates])
    found = []
    for arm, row, one, p in zip(arms, differences, estimates, p_values, strict=True):
        decision = _decide(row, one, p, level)
        more = None
        if one is not None and decision == "noise" and (needed := seeds_needed(one.mean, one.sd, level / len(arms))):
            more = max(1, needed - one.n)
        verdict = _diverged(arm, baseline) if decision == "diverged" else _words(decision, one, more, len(row))
        found.append(Judged(row, one, None if one is None else p, decision, more, verdict))
    return found


def _decide(differences: Sequence[float | None], found: Estimate | None, p: float, level: float) -> Decision:
    if None in differences:
        return "diverged"
    if all(abs(one) < SAME for one in differences if one is not None):
        return "same"
    if found is None or found.n < FEWEST_SEEDS:
        return "too few"
    if p > level:
        return "noise"
    return "better" if found.mean < 0 else "worse"


def _words(decision: Decision, found: Estimate | None, more: int | None, n: int) -> str:
    if decision == "same":
        exactly = found is None or (found.mean == 0.0 and found.sd == 0.0)
        return "no difference at all: the losses are equal, bit for bit" if exactly else "no difference: no pair differs in its first four decimals"
    if decision == "too few" or found is None:
        return f"too few seeds for a verdict: {FEWEST_SEEDS} are the least, and there {'is 1' if n == 1 else f'are {n}'}"
    digits = _digits(found)
    need = f"over {MOST_SEEDS} seeds needed, so it hardly matters" if more is None else f"about {more} more seed{'s' * (more > 1)} needed"
    if found.low * found.high <= 0:
        interval = f"{_signed(found.low, digits)} to {_signed(found.high, digits)}"
        return f"within seed noise: {need} ({_signed(found.mean, digits)}, 95 % interval {interval})"
    ends = sorted((abs(found.low), abs(found.high)))
    size = f"{_signed(found.mean, digits)}, 95 % interval {ends[0]:.{digits}f} to {ends[1]:.{digits}f}"
    # The interval alone leaves out 0 for one comparison of equals in twenty; the rule asks for more.
    return size if decision in ("better", "worse") else f"not yet certain: {need} ({size})"


def _diverged(arm: Sequence[float | None], baseline: Sequence[float | None]) -> str:
    said = [
        f"{who} diverged with {list(losses).count(None)} of {len(losses)} seeds" for who, losses in (("it", arm), ("the baseline", baseline)) if None in losses
    ]
    return f"{' and '.join(said)}: no interval"


def _digits(found: Estimate) -> int:
    """Decimals that the interval's width deserves, and enough to keep its ends away from 0."""
    sizes = [(found.high - found.low) / 2, *([min(abs(found.low), abs(found.high))] if found.low * found.high > 0 else [])]
    return min(6, max([2, *(math.ceil(-math.log10(size)) for size in sizes if size > 0)]))


def _signed(value: float, digits: int) -> str:
    """0.03 better, 0.01 worse, or 0.00."""
    text = f"{abs(value):.{digits}f}"
    return text if float(text) == 0 else f"{text} {'better' if value < 0 else 'worse'}"
