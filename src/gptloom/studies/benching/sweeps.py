"""Sweeps around a recipe: one setting at a time, its neighbours in powers of two, each measured as a training step."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from gptloom.config import RunConfig
from gptloom.errors import ConfigError, DivergedError, MachineError
from gptloom.fields import MOST
from gptloom.model.counting import operations_per_token
from gptloom.model.footprint import activation_bytes
from gptloom.runtime import is_out_of_memory, memory_size, pick_precision
from gptloom.settings import merge, nest, parse
from gptloom.studies.benching.limits import Multiplier
from gptloom.studies.benching.stepping import Steps, time_steps
from gptloom.studies.benching.timing import Budget, Say, ending_exponent, exponent

MOST_SHARE = 0.15
"""Share of the time for steps that one point may be expected to take."""

_STEPS = 4  # of a point, that there must be time for: one that does not count, and three that do


@dataclass(frozen=True)
class Factor:
    """A setting that is varied.

    Attributes:
        name: in a word.
        key: of the setting.
        powers: of which number, and from which to which, its value is multiplied with.
        follows: settings of the model that grow with it where they are set.
    """

    name: str
    key: str
    powers: tuple[int, int, int]
    follows: tuple[str, ...] = ()

    def value(self, config: RunConfig) -> int:
        """What a configuration says."""
        group, name = self.key.split(".")
        return int(getattr(getattr(config, group), name))

    def at(self, config: RunConfig, factor: float) -> RunConfig:
        """The same with this setting multiplied.

        Raises:
            ConfigError: it does not go with the others.
        """
        changes: dict[str, Any] = {self.key: min(MOST, max(1, round(self.value(config) * factor)))}
        for name in self.follows:
            if (now := getattr(config.model, name)) is not None:
                changes[f"model.{name}"] = max(1, round(now * factor))
        micro = config.train.micro_batch_size
        if self.key == "train.batch_size" and micro is not None and changes[self.key] % micro:
            changes["train.micro_batch_size"] = None
        return parse(RunConfig, merge(config.model_dump(), nest(changes)), where=f"{self.name} {changes[self.key]:,}")


FACTORS = (
    Factor("batch", "train.batch_size", (2, -3, 3)),
    Factor("context", "model.block_size", (2, -2, 4)),
    Factor("width", "model.n_embd", (2, -2, 2), follows=("head_size", "mlp_width")),
    Factor("depth", "model.n_layer", (2, -2, 2)),
    Factor("vocabulary", "model.vocab_size", (4, -1, 5)),
)


@dataclass(frozen=True)
class Point:
    """One measured step.

    Attributes:
        value: of the factor.
        steps: what was measured.
        operations: of a token, by `operations_per_token`.
        limit: seconds that the step's matrix products take by themselves, as quick as they can be made here.
    """

    value: int
    steps: Steps
    operations: int
    limit: float

    @property
    def rate(self) -> float:
        """Operations a second."""
        return self.operations * self.steps.tokens / self.steps.seconds.median

    def as_dict(self, peak: float | None) -> dict[str, Any]:
        """For JSON; `peak` is the published rate of the device, where there is one."""
        s, seconds = self.steps, self.steps.seconds
        return {
            "value": self.value,
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
            "limit_operations_per_second": sum(product.operations * times for product, times in s.products.items()) / self.limit if self.limit else None,
            "share_of_limit": self.limit / seconds.median,
            "mfu": None if peak is None else self.rate / peak,
        }


@dataclass
class Sweep:
    """What was measured of one factor, and what was not, with the reason."""

    factor: Factor
    points: dict[int, Point] = field(default_factory=dict)
    missing: dict[int, str] = field(default_factory=dict)

    def nearest(self, value: int) -> Point:
        """The measured point that is closest by its ratio."""
        return self.points[min(self.points, key=lambda other: abs(math.log(other / value)))]

    def as_dict(self, peak: float | None) -> dict[str, Any]:
        """For JSON: points by value, and the powers with which the time of a step grows."""
        points = [self.points[value] for value in sorted(self.points)]
        values, seconds = [point.value for point in points], [point.steps.seconds.median for point in points]
        return {
            "name": self.factor.name,
            "setting": self.factor.key,
            "points": [point.as_dict(peak) for point in points],
            "exponent": exponent(values, seconds),
            "exponent_at_the_end": ending_exponent(values, seconds),
            "left_out": [{"value": value, "why": why} for value, why in sorted(self.missing.items())],
        }


def sweep(config: RunConfig, device: torch.device, budget: Budget, multiplier: Multiplier, say: Say) -> Iterator[list[Sweep]]:
    """Measure around a configuration, its own step first and then those that are ever further from it.

    Args:
        config: the middle of all sweeps.
        device: where to train.
        budget: of time; what does not fit is left out, and named.
        multiplier: times the products.
        say: told of each point.

    Yields:
        All sweeps as they stand, after each point; the same objects each time.
    """
    sweeps = [Sweep(factor) for factor in FACTORS if factor.value(config) and not (factor.key == "model.block_size" and config.model.is_recurrent)]
    middle = _measure("the recipe's own step", config, device, budget, (budget.left * MOST_SHARE / 3,) * 2, multiplier, say)
    if isinstance(middle, str):
        raise MachineError(f"the recipe's own step cannot be measured: {middle}", where=str(device), cure="make the model or --train.batch-size smaller")
    whole = budget.left
    for one in sweeps:
        one.points[one.factor.value(config)] = Point(one.factor.value(config), *middle)
    yield sweeps
    order = _order(sweeps)
    for number, (one, power) in enumerate(order):
        factor = one.factor.powers[0] ** power
        value = max(1, round(one.factor.value(config) * factor))
        if value in one.points or value in one.missing:
            continue
        try:
            there = one.factor.at(config, factor)
        except ConfigError as error:
            one.missing[value] = error.line()
            continue
        expected = operations_per_token(there.model) * there.train.batch_size * there.model.block_size / one.nearest(value).rate
        if _STEPS * expected > min(MOST_SHARE * whole, budget.left):
            one.missing[value] = f"not enough time: a step would take about {expected:.1f} s"
            continue
        share = budget.left / 2 / (len(order) - number)
        found = _measure(f"{one.factor.name} {value:,}", there, device, budget, (max(share, _STEPS * expected), share), multiplier, say)
        if isinstance(found, str):
            one.missing[value] = found
        else:
            one.points[value] = Point(value, *found)
        yield sweeps


def _order(sweeps: Sequence[Sweep]) -> list[tuple[Sweep, int]]:
    """Every point of every sweep, the nearest to the middle first."""
    found = [(one, power) for one in sweeps for power in range(one.factor.powers[1], one.factor.powers[2] + 1) if power]
    return sorted(found, key=lambda pair: abs(pair[1]))


def _measure(
    name: str, config: RunConfig, device: torch.device, budget: Budget, times: tuple[float, float], multiplier: Multiplier, say: Say
) -> tuple[Steps, int, float] | str:
    """A step, its operations and its limit, with so many seconds for steps and for products; or in a sentence why there is none."""
    try:
        _check_room(config, device)
        steps = time_steps(config, device, budget.of(times[0]), say)
        operations = operations_per_token(config.model)
        limit = multiplier.seconds(steps.products, steps.dtype, budget.of(times[1]))
    except (MachineError, DivergedError) as error:
        say(f"{name}: {error.line()}")
        return error.line()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        say(f"{name}: out of memory")
        return "out of memory"
    say(f"{name}: {1000 * steps.seconds.median:.2f} ms a step, {steps.tokens / steps.seconds.median:,.0f} tokens/s, {limit / steps.seconds.median:.0%} products")
    return steps, operations, limit


def _check_room(config: RunConfig, device: torch.device) -> None:
    """Some systems end a process that takes more memory than there is, so that it had better not be tried."""
    have = memory_size(device)
    if have is None:
        return
    dtype = pick_precision(config.train.precision, device)
    needed = activation_bytes(config.model, config.train.rows, dtype=dtype, on_cpu=device.type == "cpu")
    if needed > have:
        raise MachineError(f"a pass takes about {needed / 1e9:,.1f} GB, and the memory has {have / 1e9:,.1f} GB", cure="smaller batches are measured")
