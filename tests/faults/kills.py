"""kill -9 at random moments of a run that saves almost continuously."""

import hashlib
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from faults.table import Row, Tally
from faults.trials import (
    being_written,
    checkpoints,
    kill,
    last_step,
    problem_of_run,
    start,
    step_of,
    train_words,
    wait_for,
    write_wide_text,
)

EVERY = 3
"""Steps between saves."""

WIDE = {
    "model.n-layer": 1,
    "model.n-head": 4,
    "model.block-size": 8,
    "train.batch-size": 1,
    "train.save-every": EVERY,
    "train.eval-every": 10**6,
}


def rows(quick: bool) -> Iterator[Row]:
    """Kill the same run repeatedly; `gptloom resume` continues it each time."""
    kills, width = (2, 128) if quick else (200, 256)
    with tempfile.TemporaryDirectory() as folder:
        yield _Run(Path(folder), width).survive(kills)


class _Run:
    """A run that is killed, checked and continued."""

    def __init__(self, folder: Path, width: int) -> None:
        self.run, self.log = folder / "run", folder / "log"
        text = write_wide_text(folder, 4000)
        self.train = train_words(text, self.run, WIDE, {"model.n-embd": width, "train.steps": 10**6})
        self.random = random.Random(4)
        self.hashes: dict[str, str] = {}  # a step that is trained twice must give the same weights
        self.lost = self.inside = self.more = 0

    def survive(self, kills: int) -> Row:
        tally = Tally("kill -9")
        while tally.tries < kills:
            before = max(map(step_of, checkpoints(self.run)), default=0)
            words = ["resume", str(self.run)] if before else self.train
            process = start(words, self.log)
            moving = self._wait(process, before)
            if process.poll() is not None:
                tally.add(f"could not go on: {self.log.read_text(errors='replace').strip().splitlines()[-1:]}")
                return tally.row("given up")
            time.sleep(self.random.uniform(0.0, 1.0) if moving else 0.0)
            kill(process)
            self.inside += being_written(self.run)
            tally.add(self._problem())
            print(f"\r  kill {tally.tries}, {self.inside} inside a write ", end="", file=sys.stderr, flush=True)
        size = sum(path.stat().st_size for path in checkpoints(self.run)[-1].iterdir()) / 1e6
        lost = f"at most {self.lost} steps lost, at a save every {EVERY} "
        lost += f"({self.more} lost more than {EVERY}: the write took longer than that)"
        return tally.row(f"{self.inside} inside a write of {size:.0f} MB; {lost}")

    def _wait(self, process, before: int) -> bool:
        """Wait until it saves again or, one time in ten, until a random moment of its start."""
        if before and self.random.random() < 0.1:
            time.sleep(self.random.uniform(0.0, 4.0))
            return False
        return wait_for(lambda: any(step_of(path) > before for path in checkpoints(self.run)), process)

    def _problem(self) -> str:
        found = checkpoints(self.run)
        newest = step_of(found[-1])  # where it will continue
        last = last_step(self.run)
        self.lost, self.more = max(self.lost, last - newest), self.more + (last - newest > EVERY)
        # Training continues while a checkpoint is written, up to the next save, which waits for it.
        if last - newest > 2 * EVERY:
            return f"{last - newest} steps are lost"
        if problem := problem_of_run(self.run):
            return problem
        for path in found:
            weights = hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest()
            if self.hashes.setdefault(path.name, weights) != weights:
                return f"{path.name} has other weights than before the kill"
        return ""
