"""Sweeps around a recipe: one setting is varied at a time, in powers of two or four, and a training step is timed."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from gptloom.config.base import MOST
from gptloom.config.load import nest, resolve
from gptloom.config.run import RunConfig
from gptloom.devices import is_out_of_memory, memory_size, pick_precision
from gptloom.errors import ConfigError, DivergedError, MachineError
from gptloom.model.build import operations_per_token
from gptloom.studies.bench.limits import Budget, Multiplier, Say, ending_exponent, exponent
from gptloom.studies.bench.speed import Steps, time_steps
from gptloom.training.memory import activation_bytes


@dataclass(frozen=True)
class Factor:
    """A setting that is varied.

    Attributes:
        name: a short name.
        key: the setting's key, such as model.n_embd.
        powers: (base, lowest power, highest power) of the factors by which the value is multiplied.
        most: the largest value that is tried.
        follows: settings of the model that are multiplied, too, if they are set.
    """

    name: str
    key: str
    powers: tuple[int, int, int]
    most: int = MOST
    follows: tuple[str, ...] = ()

    def value(self, config: RunConfig) -> int:
        """The setting's value in a configuration."""
        group, name = self.key.split(".")
        return int(getattr(getattr(config, group), name))

    def at(self, config: RunConfig, factor: float) -> RunConfig:
        """The configuration with this setting multiplied by a factor.

        Raises:
            ConfigError: the new value does not fit the other settings.
        """
        changes: dict[str, Any] = {self.key: max(1, round(self.value(config) * factor))}
        for name in self.follows:
            if (now := getattr(config.model, name)) is not None:
                changes[f"model.{name}"] = max(1, round(now * factor))
        micro = config.train.micro_batch_size
        if self.key == "train.batch_size" and micro is not None and changes[self.key] % micro:
            changes["train.micro_batch_size"] = None
        return resolve(config, nest(changes), where=f"{self.name} {changes[self.key]:,}")


FACTORS = (
    Factor("batch", "train.batch_size", (2, -3, 3)),
    Factor("context", "model.block_size", (2, -2, 4)),
    Factor("width", "model.n_embd", (2, -2, 2), follows=("head_size", "mlp_width")),
    Factor("depth", "model.n_layer", (2, -2, 2)),
    Factor("vocabulary", "model.vocab_size", (4, -1, 5), most=1 << 18),
)


MOST_SHARE = 0.15
"""Largest share of the time budget that the steps of one point may be expected to take."""

STEPS = 4
"""Smallest number of steps of a point: one warm-up step, and three that are timed."""


@dataclass(frozen=True)
class Point:
    """One measured step.

    Attributes:
        steps: the measured steps.
        operations: the operations per token, by `operations_per_token`.
        limit: the seconds that the step's matrix products alone take, at their fastest.
    """

    steps: Steps
    operations: int
    limit: float

    @property
    def rate(self) -> float:
        """Operations per second."""
        return self.operations * self.steps.tokens / self.steps.seconds.median

    def expected(self, config: RunConfig) -> float:
        """Expected seconds of a step of another configuration, in proportion to its operations, or else its tokens."""
        operations = max(1, operations_per_token(config.model)) / max(1, self.operations)
        return (
            self.steps.seconds.median
            * operations
            * config.train.batch_size
            * config.model.block_size
            / self.steps.tokens
        )

    def as_dict(self, value: int, peak: float | None) -> dict[str, Any]:
        """The measurements for JSON; `peak` is the device's published rate in operations per second, if known."""
        s, seconds = self.steps, self.steps.seconds
        return {
            "value": value,
            "parameters": s.parameters,
            "ms": 1000 * seconds.median,
            "ms_quartiles": [1000 * seconds.low, 1000 * seconds.high],
            "ms_best": 1000 * seconds.best,
            "repeats": seconds.repeats,
            "tokens": s.tokens,
            "passes": s.passes,
            "threads": s.threads,
            "tokens_per_second": s.tokens / seconds.median,
            "operations_per_token": self.operations,
            "operations_per_second": self.rate,
            "limit_ms": 1000 * self.limit,
            "limit_operations_per_second": sum(product.operations * times for product, times in s.products.items())
            / self.limit
            if self.limit
            else None,
            "share_of_limit": self.limit / seconds.median,
            "mfu": None if peak is None else self.rate / peak,
        }


@dataclass
class Sweep:
    """The measured points of one factor by value, and the reasons for missing points."""

    factor: Factor
    points: dict[int, Point] = field(default_factory=dict)
    missing: dict[int, str] = field(default_factory=dict)

    def nearest(self, value: int) -> Point:
        """The measured point whose value is closest by ratio."""
        return self.points[min(self.points, key=lambda other: abs(math.log(other / value)))]

    def as_dict(self, peak: float | None) -> dict[str, Any]:
        """The sweep for JSON: points by value, and the exponents with which the time of a step grows."""
        values = sorted(self.points)
        seconds = [self.points[value].steps.seconds.median for value in values]
        return {
            "name": self.factor.name,
            "setting": self.factor.key,
            "points": [self.points[value].as_dict(value, peak) for value in values],
            "exponent": exponent(values, seconds),
            "exponent_at_the_end": ending_exponent(values, seconds),
            "left_out": [{"value": value, "why": why} for value, why in sorted(self.missing.items())],
        }


class Sweeper:
    """Measures steps one after another.

    Args:
        device: the device to train on.
        budget: the time budget; a point that does not fit is recorded as missing.
        multiplier: times the matrix products.
        say: a function that is called with a line about each point.
    """

    def __init__(self, device: torch.device, budget: Budget, multiplier: Multiplier, say: Say) -> None:
        """Start with no measurements."""
        self.device, self.budget, self.multiplier, self.say = device, budget, multiplier, say
        self.preparing = 0.0  # seconds of overhead of the last point
        self.middle: tuple[RunConfig, Point] | None = None

    def around(self, config: RunConfig) -> Iterator[list[Sweep]]:
        """Measure a configuration's own step, and then variants in the order of their distance from it.

        Yields:
            All sweeps, after each point; the same objects each time.

        Raises:
            MachineError: the configuration's own step cannot be measured.
        """
        sweeps = [
            Sweep(factor)
            for factor in FACTORS
            if factor.value(config) and not (factor.name == "context" and config.model.is_recurrent)
        ]
        longest = MOST_SHARE * self.budget.left
        middle = self._measure("the recipe's own step", config, longest / 3, longest / 3)
        if isinstance(middle, str):
            raise MachineError(
                f"the recipe's own step cannot be measured: {middle}",
                where=str(self.device),
                cure="make the model or --train.batch-size smaller",
            )
        self.middle = config, middle
        for one in sweeps:
            one.points[one.factor.value(config)] = middle
        yield sweeps
        order = _order(sweeps)
        for number, (one, power) in enumerate(order):
            factor = float(one.factor.powers[0]) ** power
            value = max(1, round(one.factor.value(config) * factor))
            if value in one.points or value in one.missing or value > one.factor.most:
                continue
            try:
                there = one.factor.at(config, factor)
                found = self._next(
                    f"{one.factor.name} {value:,}",
                    there,
                    one.nearest(value).expected(there),
                    longest,
                    len(order) - number,
                )
            except ConfigError as error:
                found = error.line()
            if isinstance(found, str):
                one.missing[value] = found
            else:
                one.points[value] = found
            yield sweeps

    def again(self) -> float | None:
        """Measure the recipe's own step again; return the ratio of the second time to the first.

        A ratio far from 1 means that other processes used the machine. None if the step cannot be measured.
        """
        assert self.middle is not None, "it has been measured"
        config, first = self.middle
        found = self._measure("the recipe's own step again", config, STEPS * first.steps.seconds.median, 0.0)
        return None if isinstance(found, str) else found.steps.seconds.median / first.steps.seconds.median

    def _next(self, name: str, config: RunConfig, expected: float, longest: float, left: int) -> Point | str:
        """Measure a point unless it would take too long; `left` is the number of points that share the budget."""
        if STEPS * expected > longest:
            return f"a step would take about {expected:.1f} s; --minutes gives more time"
        if STEPS * expected + self.preparing > self.budget.left:
            return "the time was used up; --minutes gives more"
        share = self.budget.left / left / 2
        return self._measure(name, config, max(share, STEPS * expected), share)

    def _measure(self, name: str, config: RunConfig, stepping: float, multiplying: float) -> Point | str:
        """Measure a step and its limit in `stepping` and `multiplying` seconds; return the reason if that fails."""
        clock = self.budget.clock
        start = clock()
        try:
            _check_room(config, self.device)
            steps = time_steps(config, self.device, self.budget.of(stepping), self.say)
            limit = self.multiplier.seconds(steps.products, steps.dtype, self.budget.of(multiplying))
        except (MachineError, DivergedError) as error:
            self.say(f"{name}: {error.line()}")
            return error.line()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            self.say(f"{name}: out of memory")
            return "out of memory"
        self.preparing = max(0.0, clock() - start - stepping - multiplying)
        found = Point(steps, operations_per_token(config.model), limit)
        share = f"{limit / steps.seconds.median:.0%} products"
        median = steps.seconds.median
        self.say(f"{name}: {1000 * median:.2f} ms a step, {steps.tokens / median:,.0f} tokens/s, {share}")
        return found


def _order(sweeps: Sequence[Sweep]) -> list[tuple[Sweep, int]]:
    """All points of all sweeps, ordered by distance from the recipe; the smaller of two first."""
    found = [(one, power) for one in sweeps for power in range(one.factor.powers[1], one.factor.powers[2] + 1) if power]
    return sorted(found, key=lambda pair: (abs(pair[1]), pair[1]))


def _check_room(config: RunConfig, device: torch.device) -> None:
    """Check the memory before a pass, for some systems kill a process that takes too much.

    Raises:
        MachineError: the pass needs more memory than the device has.
    """
    have = memory_size(device)
    if have is None:
        return
    dtype = pick_precision(config.train.precision, device)
    needed = activation_bytes(config.model, config.train.rows, dtype=dtype, on_cpu=device.type == "cpu")
    if needed > have:
        raise MachineError(
            f"a pass takes about {needed / 1e9:,.1f} GB, and the memory has {have / 1e9:,.1f} GB",
            cure="smaller batches are measured",
        )
