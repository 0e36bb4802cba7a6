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
    """Seconds of something that was done several times.

    Attributes:
        median: half of the times lie below.
        low: a quarter of them does.
        high: three quarters do.
        best: the shortest.
        repeats: how many there are.
    """

    median: float
    low: float
    high: float
    best: float
    repeats: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Spread":
        """Of at least one time."""
        low, median, high = np.quantile(seconds, (0.25, 0.5, 0.75)).tolist()
        return cls(median, low, high, min(seconds), len(seconds))


class Budget:
    """Time that is shared out among things to come; what one of them leaves goes to the others."""

    def __init__(self, seconds: float | int, clock: Clock = time.perf_counter) -> None:
        """Begin now."""
        self.clock, self.seconds = clock, seconds
        self.end = clock() + seconds

    @property
    def left(self) -> float:
        """Seconds, at least 0."""
        return max(0.0, self.end - self.clock())

    @property
    def over(self) -> float:
        """Seconds that have been spent beyond it."""
        return max(0.0, self.clock() - self.end)

    def again(self) -> "Budget":
        """As much, from now on."""
        return self.of(self.seconds)

    def part(self, share: float | int) -> "Budget":
        """Of what is left, this share, from now on."""
        return self.of(self.left * share)

    def of(self, seconds: float | int) -> "Budget":
        """Another one, by the same clock, from now on."""
        return Budget(seconds, self.clock)


def wait(device: torch.device) -> None:
    """Until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def repeat(
    action: Callable[[], object], device: torch.device, budget: Budget, *, least: int = 3, most: int = 1000
) -> list[float]:
    """Seconds of each of several calls, one at least; fewer than `least` only where the budget is spent."""
    found: list[float] = []
    while len(found) < most and (not found or budget.left > (found[-1] if len(found) >= least else 0.0)):
        wait(device)
        start = budget.clock()
        action()
        wait(device)
        found.append(budget.clock() - start)
    return found


def exponent(values: Sequence[float | int], seconds: Sequence[float | int]) -> float | None:
    """The power p of the law seconds = a value^p that fits best (least squares of the logarithms); None for fewer than two values."""
    if len(set(values)) < 2:
        return None
    slope, _ = np.polyfit(np.log(values), np.log(seconds), 1)
    return float(slope)


def ending_exponent(values: Sequence[float | int], seconds: Sequence[float | int]) -> float | None:
    """The power between the two largest values: how the time grows where the growth is about to matter."""
    last = sorted(zip(values, seconds, strict=True))[-2:]
    return exponent(*zip(*last, strict=True)) if len(last) == 2 else None
