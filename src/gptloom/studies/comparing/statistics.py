"""Paired statistics of a few trainings: Student's t without scipy, intervals, Holm's correction, and how many seeds would do.

The rule by which a difference is called one, stated before anything is run:

1. Every seed gives one difference, arm minus baseline. The interval reported is the 95 % t interval of their mean.
2. "better" or "worse" is said only where the two-sided paired t-test's p-value, after Holm's correction over all arms of the
   comparison, is at most `LEVEL` = 2 %. So when no arm differs from the baseline, at most 2 comparisons in 100 claim a difference.
3. Who adds seeds after having looked gets another chance to be fooled. Each later look at the same comparison therefore has half
   the level of the one before it: 2 %, 1 %, 0.5 % ..., and all looks together stay below 4 %.

What the stricter rule costs: with 5 seeds the mean must be 1.35 times as far from 0 as a 95 % interval asks for (t quantiles 3.75
and 2.78), with 10 seeds 1.25 times: 7 seeds do what 5 would have done, 14 what 10 would have done.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean, stdev

CONFIDENCE = 0.95
LEVEL = 0.02
FEWEST_SEEDS = 3
MOST_SEEDS = 100


@dataclass(frozen=True)
class Estimate:
    """The mean of paired differences and how well it is known.

    Attributes:
        n: number of pairs.
        mean: of the differences.
        sd: their standard deviation (n - 1).
        low: lower end of the 95 % interval of the mean.
        high: its upper end.
        p: two-sided p-value of the hypothesis that the mean is 0.
    """

    n: int
    mean: float
    sd: float
    low: float
    high: float
    p: float


def estimate(differences: Sequence[float]) -> Estimate:
    """Student's (1908) interval and test for the mean of at least 2 differences.

    Differences without any spread have an interval of no width: p is then 1 where they are all 0, and else 0.

    Raises:
        ValueError: fewer than 2 differences.
    """
    n = len(differences)
    if n < 2:
        raise ValueError(f"{n} differences have no spread to judge by")
    mean, sd = fmean(differences), stdev(differences)
    error = sd / math.sqrt(n)
    if error == 0.0:
        return Estimate(n, mean, 0.0, mean, mean, 1.0 if mean == 0.0 else 0.0)
    half = t_quantile(0.5 + CONFIDENCE / 2, n - 1) * error
    return Estimate(n, mean, sd, mean - half, mean + half, t_two_sided(mean / error, n - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p-values, in the given order: rejecting those at most α keeps the chance of any false rejection at most α."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def level_of_look(earlier_looks: int) -> float:
    """The level of a verdict after so many earlier ones on fewer seeds: halved each time, so that all together stay below 2 `LEVEL`."""
    return LEVEL * 0.5**earlier_looks


def seeds_needed(mean: float, sd: float, level: float) -> int | None:
    """The fewest seeds with which a mean and spread like these would be told from 0 at this two-sided level; None above 100.

    That is the smallest n >= 3 for which t(1 - level / 2, n - 1) sd / sqrt(n) < abs(mean).
    """
    if sd == 0.0 or mean == 0.0:
        return None if mean == 0.0 else FEWEST_SEEDS
    # The half-width is below the mean where the mean's own p-value is below the level; the more seeds, the smaller it is.
    numbers = range(FEWEST_SEEDS, MOST_SEEDS + 1)
    place = bisect_left(numbers, True, key=lambda n: t_two_sided(mean / sd * math.sqrt(n), n - 1) < level)
    return numbers[place] if place < len(numbers) else None


def t_two_sided(t: float, df: int) -> float:
    """The probability that abs(T) >= abs(t) under Student's t with `df` degrees of freedom: I_x(df/2, 1/2), x = df / (df + t²)."""
    return _incomplete_beta(df / 2, 0.5, df / (df + t * t))


@cache
def t_quantile(p: float, df: int) -> float:
    """The t below which Student's distribution with `df` degrees of freedom has probability p, 0.5 <= p < 1; by bisection.

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
    """The regularised incomplete beta function I_x(a, b), 0 <= x <= 1 (Abramowitz and Stegun 26.5.8; the mirror image where that converges sooner)."""
    if x in (0.0, 1.0):
        return x
    if x > (a + 1) / (a + b + 2):
        return 1.0 - _incomplete_beta(b, a, 1.0 - x)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    return math.exp(log_front) / (a * _continued_fraction(a, b, x))


def _continued_fraction(a: float, b: float, x: float) -> float:
    """1 + d1/(1 + d2/(1 + ...)), evaluated forwards (modified Lentz: no term may vanish, so tiny stands for 0)."""
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
    """D of this term, divided by x."""
    m = term // 2
    if term % 2:
        return -(a + m) * (a + b + m) / ((a + 2 * m) * (a + 2 * m + 1))
    return m * (b - m) / ((a + 2 * m - 1) * (a + 2 * m))
