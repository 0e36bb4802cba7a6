"""Clocks, budgets, and times with their spread."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

Clock = Callable[[], float]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Spread:
    """Statistics of repeated measurements, in seconds.

    Attributes:
        median: the median.
        low: the first quartile.
        high: the third quartile.
        best: the minimum.
        repeats: the number of measurements.
    """

    median: float
    low: float
    high: float
    best: float
    repeats: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Spread":
        """The statistics of one or more times."""
        low, median, high = np.quantile(seconds, (0.25, 0.5, 0.75)).tolist()
        return cls(median, low, high, min(seconds), len(seconds))


class Budget:
    """A time budget. Shares are taken of the time that is left, so unused time goes to later shares."""

    def __init__(self, seconds: float | int, clock: Clock = time.perf_counter) -> None:
        """Start the budget now."""
        self.clock, self.seconds = clock, seconds
        self.end = clock() + seconds

    @property
    def left(self) -> float:
        """Seconds that are left, at least 0."""
        return max(0.0, self.end - self.clock())

    @property
    def over(self) -> float:
        """Seconds that have been spent beyond the budget, at least 0."""
        return max(0.0, self.clock() - self.end)

    def again(self) -> "Budget":
        """A budget of the same length that starts now."""
        return self.of(self.seconds)

    def part(self, share: float | int) -> "Budget":
        """A budget that starts now, with this share of the time that is left."""
        return self.of(self.left * share)

    def of(self, seconds: float | int) -> "Budget":
        """A budget of `seconds` that starts now, with the same clock."""
        return Budget(seconds, self.clock)


def wait(device: torch.device) -> None:
    """Wait until the device has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def repeat(
    action: Callable[[], object], device: torch.device, budget: Budget, *, least: int = 3, most: int = 1000
) -> list[float]:
    """Call a function repeatedly; return the seconds of each call.

    It is called at least once and at most `most` times, and fewer than `least` times only if the budget is used up.
    """
    found: list[float] = []
    while len(found) < most and (not found or budget.left > (found[-1] if len(found) >= least else 0.0)):
        wait(device)
        start = budget.clock()
        action()
        wait(device)
        found.append(budget.clock() - start)
    return found


def exponent(values: Sequence[float | int], seconds: Sequence[float | int]) -> float | None:
    """The exponent p of the best fit seconds = a * value ** p, by least squares of the logarithms.

    None for fewer than two values.
    """
    if len(set(values)) < 2:
        return None
    slope, _ = np.polyfit(np.log(values), np.log(seconds), 1)
    return float(slope)


def ending_exponent(values: Sequence[float | int], seconds: Sequence[float | int]) -> float | None:
    """The exponent between the two largest values, where the growth matters most; None for fewer than two values."""
    last = sorted(zip(values, seconds, strict=True))[-2:]
    return exponent(*zip(*last, strict=True)) if len(last) == 2 else None
