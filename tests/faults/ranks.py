"""Two processes on one batch: one is killed, the other ends, and the run continues with two processes or one."""

import math
import os
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from faults.table import Row, Tally
from faults.trials import (
    call,
    children,
    difference,
    is_alive,
    kill,
    last_step,
    log_lines,
    problem_of_run,
    reference_run,
    start,
    train_words,
    wait_for,
    write_text,
)

SETTINGS = {
    "train.steps": 60,
    "train.batch-size": 8,
    "train.micro-batch-size": 2,
    "train.save-every": 10,
    "train.eval-every": 30,
    "train.ranks": 2,
}
SECONDS = 20.0
"""The other process ends within so long."""


def rows(quick: bool) -> Iterator[Row]:
    """First with dropout, bit for bit; then without dropout, on one process, up to rounding."""
    with tempfile.TemporaryDirectory() as folder:
        trials = _Trials(Path(folder))
        if not quick:
            yield trials.killed(8)
        yield trials.on_one(1 if quick else 4)


class _Trials:
    """Small runs of two processes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.chance, self.text = folder, random.Random(11), write_text(folder)

    def _start(self, run: Path, settings: dict[str, object], *, early: bool = False) -> subprocess.Popen[bytes]:
        """Start a run and wait for some steps, or only until it has two processes."""
        process = start(train_words(self.text, run, settings), self.folder / "log")
        if early:
            wait_for(lambda: bool(children(process)), process)
            return process
        step = self.chance.randint(12, 45)
        wait_for(lambda: last_step(run) >= step, process)
        time.sleep(self.chance.uniform(0.0, 0.05))
        return process

    def killed(self, tries: int) -> Row:
        """kill -9 of the first process, and of the second."""
        tally, longest = Tally("two processes, one killed"), 0.0
        reference = reference_run(self.text, self.folder / "reference", SETTINGS)
        for number in range(tries):
            run = self.folder / f"run-{number}"
            process = self._start(run, SETTINGS, early=number % 4 == 3)
            others = children(process)
            began = time.monotonic()
            if number % 2 == 0:
                kill(process)
            else:
                os.kill(others[0], signal.SIGKILL)
            while time.monotonic() - began < SECONDS and (process.poll() is None or any(map(is_alive, others))):
                time.sleep(0.01)
            longest = max(longest, time.monotonic() - began)
            problem = self._problem(run, process, others, number % 2 == 1) or difference(run, reference)
            killed = ["the first", "the second", "the first", "the second at its start"][number % 4]
            tally.add(problem and f"{problem} (killed: {killed})")
        return tally.row(f"the other ended within {longest:.1f} s; resumed on two, to the bits of an uninterrupted run")

    def _problem(self, run: Path, process: subprocess.Popen[bytes], others: list[int], second: bool) -> str:
        if process.poll() is None or any(map(is_alive, others)):
            for other in filter(is_alive, others):
                os.kill(other, signal.SIGKILL)
            kill(process)
            return f"the other process still ran after {SECONDS:.0f} s"
        said = (self.folder / "log").read_text(errors="replace")
        if second and (process.returncode != 3 or "error: " not in said or "Traceback" in said):
            return f"exit {process.returncode}: {said.strip().splitlines()[-1][:100]}"
        if problem := problem_of_run(run, at_least=last_step(run) - 20):
            return problem
        again = call(["resume", str(run)])
        return f"the run cannot go on: {again.ending}" if again.code else ""

    def on_one(self, tries: int) -> Row:
        """Stop with two processes and resume with one: the same batches, so the same losses up to rounding."""
        tally, settings, furthest = Tally("two processes, resumed on one"), SETTINGS | {"model.dropout": 0.0}, 0.0
        reference = reference_run(self.text, self.folder / "reference-dry", settings)
        for number in range(tries):
            run = self.folder / f"dry-{number}"
            process = self._start(run, settings)
            process.terminate()
            process.wait()
            if process.returncode != 143:
                tally.add(f"SIGTERM ended it with {process.returncode}")
                continue
            again = call(["resume", str(run), "--train.ranks", "1"])
            losses = [
                [line["loss"] for line in lines if line["event"] == "train"]
                for lines in (log_lines(run), reference["metrics.jsonl"])
            ]
            away = max(map(lambda one, other: abs(one - other), *losses), default=math.inf)
            furthest = max(furthest, away)
            same = len(losses[0]) == len(losses[1]) and away < 1e-4
            tally.add(
                f"the run cannot go on: {again.ending}"
                if again.code
                else ""
                if same
                else f"the losses are up to {away:.2g} nats away"
            )
        return tally.row(f"losses within {furthest:.1g} nats of the uninterrupted run's on two")
