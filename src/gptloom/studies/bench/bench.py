"""All measurements of `gptloom bench`, within a time budget. An interrupt ends them and keeps the results so far."""

import time
from collections.abc import Sequence
from typing import Any

import torch

from gptloom.config.load import resolve
from gptloom.config.run import RunConfig
from gptloom.devices import describe_machine, pick_precision, published_peak, thread_count, threads
from gptloom.errors import MachineError
from gptloom.model.build import count_parts, operations_per_token
from gptloom.studies.bench.data import time_preparing, time_starts
from gptloom.studies.bench.limits import Budget, Clock, Memory, Multiplier, Say, square
from gptloom.studies.bench.speed import Writing, time_writing, why_not
from gptloom.studies.bench.sweeps import MOST_SHARE, STEPS, Sweeper

GROUPS = {"step": 0.6, "sampling": 0.17, "data": 0.13, "start": 0.1}
"""Groups of measurements, and their shares of the time. Unused time is left to the next groups."""

GUESSED = 0.3
"""Expected rate of a training step, as a fraction of the rate of a large matrix product; used until one is measured."""

STEADY = 1.25
"""Largest ratio of two measurements of the same step on an idle machine."""

_LARGE = 256_000_000  # bytes; larger than any cache


def bench(
    config: RunConfig,
    device: torch.device,
    *,
    groups: Sequence[str] = tuple(GROUPS),
    seconds: float,
    largest: bool,
    say: Say,
    clock: Clock = time.perf_counter,
) -> dict[str, Any]:
    """Run the benchmarks.

    Args:
        config: the configuration that all sweeps start from.
        device: the device to train and sample on.
        groups: names from `GROUPS`.
        seconds: the approximate time budget.
        largest: also prepare texts of up to 1 GB, regardless of the budget.
        say: a function that is called with a line about each measurement.
        clock: a function that returns the time in seconds.

    Returns:
        The results, ready for JSON.

    Raises:
        MachineError: the step of `config` itself cannot be measured.
    """
    run = _Bench(config, device, Budget(seconds, clock), largest, say)
    start = clock()
    try:
        with threads(thread_count(config)):
            run.probe_hardware()
            chosen = [name for name in GROUPS if name in groups]
            for number, name in enumerate(chosen):
                run.measure(name, run.budget.part(GROUPS[name] / sum(GROUPS[other] for other in chosen[number:])))
    except KeyboardInterrupt:
        run.result["interrupted"] = True
    return run.result | {"seconds": clock() - start}


class _Bench:
    """The results so far, and the rates that later measurements need."""

    def __init__(self, config: RunConfig, device: torch.device, budget: Budget, largest: bool, say: Say) -> None:
        self.config, self.device, self.budget, self.largest, self.say = config, device, budget, largest, say
        self.dtype = pick_precision(config.train.precision, device)
        self.multiplier = Multiplier(device)
        self.peak = published_peak(device, self.dtype)
        self.rate = 0.0
        self.result: dict[str, Any] = {
            "recipe": config.recipe,
            "machine": describe_machine(),
            "device": str(device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "model": {
                "parameters": sum(count_parts(config.model).values()),
                "operations_per_token": operations_per_token(config.model),
            },
            "notes": [],
            "interrupted": False,
        }

    def probe_hardware(self) -> None:
        """Measure the rate of large matrix products; add the published peak rate, if it is known."""
        product = square(self.device)
        measured = product.operations / self.multiplier.seconds({product: 1}, self.dtype, self.budget.part(0.02))
        self.rate = GUESSED * measured
        self.result["limits"] = {
            "threads": torch.get_num_threads(),
            "square_side": product.m,
            "square_operations_per_second": measured,
            "published": None
            if self.peak is None
            else {"name": self.peak.name, "operations_per_second": self.peak.rate, "source": self.peak.source},
        }

    def measure(self, group: str, budget: Budget) -> None:
        """Measure one group of `GROUPS`."""
        {"step": self._step, "sampling": self._sampling, "data": self._data, "start": self._start}[group](budget)

    def _step(self, budget: Budget) -> None:
        config = self._affordable(budget)
        sweeper = Sweeper(self.device, budget, self.multiplier, self.say)
        for sweeps in sweeper.around(config):
            self.result["sweeps"] = [one.as_dict(None if self.peak is None else self.peak.rate) for one in sweeps]
            self.rate = max(1.0, sweeps[0].nearest(sweeps[0].factor.value(config)).rate)
        drift = self.result["drift"] = sweeper.again()
        if drift is not None and not 1 / STEADY < drift < STEADY:
            self._note(
                f"the recipe's own step took {drift:.2f} times as long at the end as at first: "
                "others were at work here, so measure again"
            )

    def _affordable(self, budget: Budget) -> RunConfig:
        """The configuration, with a batch small enough for several steps within the budget."""
        config, operations = self.config, operations_per_token(self.config.model) * self.config.model.block_size
        most = budget.left * MOST_SHARE / STEPS
        rows = config.train.batch_size
        while rows > 1 and operations * rows / self.rate > most:
            rows //= 2
        if rows == config.train.batch_size:
            return config
        self._note(
            f"a batch of {config.train.batch_size:,} would take too long here: the sweeps are around one of {rows:,}"
        )
        smaller = {
            "train": {
                "batch_size": rows,
                "micro_batch_size": None if rows % config.train.rows else config.train.rows,
                "ranks": 1,
            }
        }
        return resolve(config, smaller, where="bench")

    def _sampling(self, budget: Budget) -> None:
        found: dict[str, Any] = {"points": [], "left_out": []}
        self.result["sampling"] = found
        if why := why_not(self.config):
            self._note(f"sampling: {why}")
            return
        memory, most = Memory(self.device), torch.get_num_threads()
        found["memory"] = [
            {"threads": count, "bytes": _LARGE, "bytes_per_second": memory.rate(_LARGE, count, budget.part(0.05))}
            for count in sorted({1, most})
        ]
        for one in time_writing(self.config, self.device, budget, self.rate, self.say):
            if isinstance(one, Writing):
                found["points"].append(one.as_dict())
            else:
                found["left_out"].append(dict(zip(("value", "streams", "why"), one, strict=True)))

    def _data(self, budget: Budget) -> None:
        found: dict[str, Any] = {"tokenizer": self.config.data.tokenizer, "points": [], "left_out": []}
        self.result["preparing"] = found
        try:
            for one in time_preparing(self.config.data, self.config.seed, budget, self.largest, self.say):
                found["left_out" if "why" in one else "points"].append(one)
        except MachineError as error:
            self._note(error.line())

    def _start(self, budget: Budget) -> None:
        self.result["start"] = time_starts(budget, self.say)

    def _note(self, line: str) -> None:
        self.result["notes"].append(line)
        self.say(f"note: {line}")
