"""Paired statistics of a few trainings: Student's t without SciPy, Holm's correction, and a verdict in words.

The rule for a verdict is fixed before any training:

1. Every seed gives one difference, arm minus baseline. The reported interval is the 95 % t interval of their mean.
2. The verdict is "better" or "worse" only if the p-value of the two-sided paired t-test is at most `LEVEL` = 2 %, after
   Holm's correction over all arms. So if no arm differs from the baseline, at most 2 comparisons in 100 claim a
   difference.
3. More seeds after a first verdict are another chance of a false alarm. So each later look at the same comparison has
   half the level of the look before: 2 %, 1 %, 0.5 % ... All looks together stay below 4 %.

The rule is stricter than a 95 % interval. With 5 seeds, the mean must be 1.35 times as far from 0 (t quantiles 3.75 and
2.78), and with 10 seeds 1.25 times. So the rule needs 7 seeds instead of 5, and 14 instead of 10.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean, stdev
from typing import Literal

CONFIDENCE = 0.95
LEVEL = 0.02
FEWEST_SEEDS = 3
MOST_SEEDS = 100


@dataclass(frozen=True)
class Estimate:
    """The mean of paired differences, with its interval and test.

    Attributes:
        n: the number of pairs.
        mean: the mean of the differences.
        sd: the standard deviation of the differences (n - 1).
        low: the lower end of the 95 % interval of the mean.
        high: the upper end.
        p: the two-sided p-value of the hypothesis that the mean is 0.
    """

    n: int
    mean: float
    sd: float
    low: float
    high: float
    p: float


def estimate(differences: Sequence[float]) -> Estimate:
    """Student's (1908) interval and test for the mean of at least 2 differences.

    The interval of equal differences has no width; p is then 1 if they are 0, and else 0.

    Raises:
        ValueError: there are fewer than 2 differences.
    """
    n = len(differences)
    if n < 2:
        raise ValueError(f"{n} differences have no standard deviation")
    mean, sd = fmean(differences), stdev(differences)
    error = sd / math.sqrt(n)
    if error == 0.0:
        return Estimate(n, mean, 0.0, mean, mean, 1.0 if mean == 0.0 else 0.0)
    half = t_quantile(0.5 + CONFIDENCE / 2, n - 1) * error
    return Estimate(n, mean, sd, mean - half, mean + half, t_two_sided(mean / error, n - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p-values, in the given order.

    If those of at most α are rejected, the probability of any false rejection is at most α.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def level_of_look(earlier_looks: int) -> float:
    """The level of a verdict after this many earlier looks; it is halved for each, so their sum is below 2 `LEVEL`."""
    return LEVEL * 0.5**earlier_looks


def seeds_needed(mean: float, sd: float, level: float) -> int | None:
    """The smallest number of seeds with which such a mean and standard deviation differ from 0 at this level.

    It is the smallest n >= 3 with t(1 - level / 2, n - 1) sd / sqrt(n) < abs(mean); None if it is above 100.
    """
    if sd == 0.0 or mean == 0.0:
        return None if mean == 0.0 else FEWEST_SEEDS
    # The half-width is below the mean if the p-value of the mean is below the level. It decreases with more seeds.
    numbers = range(FEWEST_SEEDS, MOST_SEEDS + 1)
    place = bisect_left(numbers, True, key=lambda n: t_two_sided(mean / sd * math.sqrt(n), n - 1) < level)
    return numbers[place] if place < len(numbers) else None


def t_two_sided(t: float, df: int) -> float:
    """The probability that abs(T) >= abs(t) for Student's t with `df` degrees of freedom.

    It is the regularised incomplete beta function I_x(df / 2, 1 / 2) with x = df / (df + t²).
    """
    return _incomplete_beta(df / 2, 0.5, df / (df + t * t))


@cache
def t_quantile(p: float, df: int) -> float:
    """The p-quantile of Student's t with `df` degrees of freedom, 0.5 <= p < 1; by bisection.

    Raises:
        ValueError: p or df is out of range.
    """
    if not 0.5 <= p < 1.0 or df < 1:
        raise ValueError(f"no t quantile for p={p}, df={df}")
    tail, low, high = 2.0 * (1.0 - p), 0.0, 1.0
    while t_two_sided(high, df) > tail:
        low, high = high, 2.0 * high
    while (middle := (low + high) / 2) not in (low, high):
        if t_two_sided(middle, df) > tail:
            low = middle
        else:
            high = middle
    return middle


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b), 0 <= x <= 1 (Abramowitz and Stegun 26.5.8).

    1 - I_(1-x)(b, a) is used where it converges faster.
    """
    if x in (0.0, 1.0):
        return x
    if x > (a + 1) / (a + b + 2):
        return 1.0 - _incomplete_beta(b, a, 1.0 - x)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    return math.exp(log_front) / (a * _continued_fraction(a, b, x))


def _continued_fraction(a: float, b: float, x: float) -> float:
    """Evaluate 1 + d1/(1 + d2/(1 + ...)) forwards by the modified Lentz method, which replaces 0 by a tiny number."""
    tiny, value = 1e-300, 1.0
    upper, lower = 1.0, 0.0
    for term in range(1, 10_000):
        d = x * _coefficient(a, b, term)
        lower = 1.0 / ((1.0 + d * lower) or tiny)
        upper = (1.0 + d / upper) or tiny
        value *= upper * lower
        if abs(upper * lower - 1.0) < 1e-15:
            break
    return value


def _coefficient(a: float, b: float, term: int) -> float:
    """The coefficient d of this term, divided by x."""
    m = term // 2
    if term % 2:
        return -(a + m) * (a + b + m) / ((a + 2 * m) * (a + 2 * m + 1))
    return m * (b - m) / ((a + 2 * m - 1) * (a + 2 * m))


Decision = Literal["better", "worse", "noise", "same", "too few", "diverged"]

SAME = 5e-5
"""If every difference is below this, no pair differs in four decimals, and the verdict is "same"."""

RULE = (
    "A difference counts if the two-sided paired t-test, corrected for the number of arms (Holm), "
    f"gives p <= {LEVEL:g}, and half of that for each later look with more seeds. "
    "The intervals are uncorrected 95 % t intervals."
)


@dataclass(frozen=True)
class Judged:
    """The verdict on one arm.

    Attributes:
        differences: arm minus baseline for each seed; negative if the arm is better, None if a training diverged.
        estimate: the mean and interval, if no pair is missing and there are at least two.
        p: Holm's adjusted p-value, or None.
        decision: the verdict as one word.
        more_seeds: the approximate number of further seeds for a verdict, if it can be computed.
        verdict: the verdict as a sentence.
    """

    differences: list[float | None]
    estimate: Estimate | None
    p: float | None
    decision: Decision
    more_seeds: int | None
    verdict: str


def judge(
    arms: Sequence[Sequence[float | None]], baseline: Sequence[float | None], level: float = LEVEL
) -> list[Judged]:
    """Judge every arm.

    Args:
        arms: for each arm, its losses by seed; None if the training diverged.
        baseline: the baseline's losses by seed, in the same order.
        level: the significance level for all arms together.
    """
    differences = [
        [None if a is None or b is None else a - b for a, b in zip(arm, baseline, strict=True)] for arm in arms
    ]
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
        return (
            "no difference at all: the losses are equal, bit for bit"
            if exactly
            else "no difference: no pair differs in its first four decimals"
        )
    if decision == "too few" or found is None:
        there = "is 1" if n == 1 else f"are {n}"
        return f"too few seeds for a verdict: at least {FEWEST_SEEDS} are needed, and there {there}"
    digits = _digits(found)
    need = (
        f"over {MOST_SEEDS} seeds needed, so it hardly matters"
        if more is None
        else f"about {more} more seed{'s' * (more > 1)} needed"
    )
    if found.low * found.high <= 0:
        interval = f"{_signed(found.low, digits)} to {_signed(found.high, digits)}"
        return f"within seed noise: {need} ({_signed(found.mean, digits)}, 95 % interval {interval})"
    ends = sorted((abs(found.low), abs(found.high)))
    size = f"{_signed(found.mean, digits)}, 95 % interval {ends[0]:.{digits}f} to {ends[1]:.{digits}f}"
    # The interval alone excludes 0 for one of twenty comparisons of equals. The rule is stricter.
    return size if decision in ("better", "worse") else f"not yet certain: {need} ({size})"


def _diverged(arm: Sequence[float | None], baseline: Sequence[float | None]) -> str:
    said = [
        f"{who} diverged with {list(losses).count(None)} of {len(losses)} seeds"
        for who, losses in (("it", arm), ("the baseline", baseline))
        if None in losses
    ]
    return f"{' and '.join(said)}: no interval"


def _digits(found: Estimate) -> int:
    """The number of decimals for the interval's width; enough to show that its ends differ from 0."""
    sizes = [
        (found.high - found.low) / 2,
        *([min(abs(found.low), abs(found.high))] if found.low * found.high > 0 else []),
    ]
    return min(6, max([2, *(math.ceil(-math.log10(size)) for size in sizes if size > 0)]))


def _signed(value: float, digits: int) -> str:
    """Format a difference as 0.03 better, 0.01 worse, or 0.00."""
    text = f"{abs(value):.{digits}f}"
    return text if float(text) == 0 else f"{text} {'better' if value < 0 else 'worse'}"
