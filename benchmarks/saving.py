"""Measure the cost of a save in the training loop: stretches of steps with and without a save, in turn.

    python benchmarks/saving.py [PAIRS] [RECIPE] [ROWS]

A stretch is longer than the save, which runs in the background. Prints the median extra seconds of a stretch with a
save, the quartiles over the pairs, and the share of a run's time at one save per minute.
"""

import itertools
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from gptloom.api import configure
from gptloom.training.callbacks import Request, View
from gptloom.training.progress import Display
from gptloom.training.run import train

SECONDS = 4.0


class Stretches(Display):
    """Requests a save at the beginning of every other stretch, and times each stretch."""

    def __init__(self, pairs: int) -> None:
        """Measure this many pairs."""
        self.wanted = pairs
        super().__init__(
            lambda line: print(line, file=sys.stderr) if line.startswith(("model", "time", "warning")) else None
        )
        self.marks: list[float] = []
        self.length = 0

    def after_step(self, view: View) -> Request:
        """Record the time; request a save or the end of the run."""
        self.marks.append(time.perf_counter())
        if not self.length and len(self.marks) == 10:
            self.length = max(4, round(SECONDS * 9 / (self.marks[-1] - self.marks[0])))
            self.marks = [time.perf_counter()]
        done = len(self.marks) - 1
        if self.length and done >= 2 * self.length * self.wanted:
            return Request.STOP
        return Request.SAVE if self.length and done % (2 * self.length) == 0 else Request.NOTHING

    def pairs(self) -> list[tuple[float, float]]:
        """Seconds of each stretch with a save, and of the next stretch without one."""
        ends = self.marks[:: self.length]
        times = [after - before for before, after in itertools.pairwise(ends)]
        return list(zip(times[::2], times[1::2], strict=False))


def main(pairs: int, recipe: str, rows: int) -> None:
    """Train until all pairs are measured."""
    watch = Stretches(pairs)
    settings = {
        "steps": 1_000_000,
        "batch_size": rows,
        "micro_batch_size": rows,
        "eval_every": 10**9,
        "save_every": 10**9,
        "sample_tokens": 0,
        "keep": 1,
    }
    config = configure(recipe, {}, {"device": "cpu", "train": settings, "data": {"val_tokens": 1000}})
    with tempfile.TemporaryDirectory() as folder:
        result = train(["shakespeare"], config, run=Path(folder) / "run", display=watch)
        size = sum(path.stat().st_size for path in Path(result.checkpoint).iterdir()) / 1e6
    found = watch.pairs()
    extra = sorted(with_save - without for with_save, without in found)
    middle, low, high = statistics.median(extra), extra[len(extra) // 4], extra[-1 - len(extra) // 4]
    print(
        f"{recipe}: {result.parameters:,} parameters, checkpoint {size:.1f} MB, "
        f"{len(found)} pairs of {watch.length} steps"
    )
    print(
        f"a save costs {middle * 1e3:.0f} ms of training (quartiles {low * 1e3:.0f} to {high * 1e3:.0f}): "
        f"{middle / 60:.2%} at one save a minute"
    )
    print(f"python {sys.version.split()[0]}, torch {torch.__version__}, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    words = sys.argv[1:]
    main(
        int(words[0]) if words else 10, words[1] if len(words) > 1 else "tiny", int(words[2]) if len(words) > 2 else 16
    )
