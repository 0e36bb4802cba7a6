"""Measure the overhead of a training step of the tiny recipe: batches, logging, progress, planning, callbacks.

    python benchmarks/bookkeeping.py [REPEATS]

Runs `gptloom train shakespeare --steps 600` in this process with timers. The overhead is the time of the loop without
gradients, their norm, the optimizer's update, evaluations and saves. Prints microseconds per step and shares of the
step.
"""

import contextlib
import functools
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

from gptloom.cli.main import main as gptloom  # before PyTorch: gptloom says how its threads wait

# isort: split
from torch import nn

from gptloom.data.batches import Batches
from gptloom.training.gradients import Gradients
from gptloom.training.optim import CombinedOptimizer
from gptloom.training.trainer import Trainer

STEPS = 600
WATCHED: list[tuple[Any, str]] = [
    (Gradients, "of"),
    (nn.utils, "get_total_norm"),
    (CombinedOptimizer, "gradients"),
    (CombinedOptimizer, "step"),
    (Trainer, "_evaluate"),
    (Trainer, "_save"),
    (Batches, "batch"),
    (Trainer, "_loop"),
]


@contextlib.contextmanager
def watched() -> Iterator[dict[str, float]]:
    """A context that sums up the seconds in each of these functions."""
    spent = {name: 0.0 for _, name in WATCHED}
    with contextlib.ExitStack() as stack:
        for owner, name in WATCHED:
            stack.enter_context(mock.patch.object(owner, name, timed(getattr(owner, name), spent, name)))
        yield spent


def timed(real: Any, spent: dict[str, float], name: str) -> Any:
    """The same function with a timer."""

    @functools.wraps(real)
    def wrapper(*args: Any, **named: Any) -> Any:
        start = time.perf_counter()
        try:
            return real(*args, **named)
        finally:
            spent[name] += time.perf_counter() - start

    return wrapper


def once() -> dict[str, float]:
    """Microseconds per step, and the share of the overhead."""
    with (
        tempfile.TemporaryDirectory() as folder,
        watched() as spent,
        contextlib.redirect_stderr(io.StringIO()),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        code = gptloom(
            [
                "train",
                "shakespeare",
                "--recipe",
                "tiny",
                "--steps",
                str(STEPS),
                "--train.eval-every",
                "100000",
                "--run",
                f"{folder}/run",
            ]
        )
    assert code == 0
    arithmetic = spent["of"] + spent["gradients"] + spent["get_total_norm"] + spent["step"]
    rest = spent["_loop"] - spent["_evaluate"] - spent["_save"] - arithmetic
    micro = {
        "step": arithmetic + rest,
        "loader": spent["batch"],
        "all but arithmetic": rest,
    }
    return {name: 1e6 * value / STEPS for name, value in micro.items()} | {"share": rest / (arithmetic + rest)}


def main() -> None:
    runs = [once() for _ in range(int(sys.argv[1]) if len(sys.argv) > 1 else 3)]
    digits = {"share": 5}
    figures = {
        name: [round(pick(run[name] for run in runs), digits.get(name, 1)) for pick in (statistics.median, min, max)]
        for name in runs[0]
    }
    print(json.dumps({"microseconds a step: median, min, max": figures}, indent=2))


if __name__ == "__main__":
    main()
