"""Two writers on one run folder: the second one is refused, and files of a killed first one do not block others."""

import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from faults.table import Row, Tally
from faults.trials import (
    call,
    difference,
    kill,
    last_step,
    problem_of_run,
    reference_run,
    start,
    train_words,
    wait_for,
    write_text,
)

SETTINGS = {"train.steps": 200, "train.save-every": 10, "train.eval-every": 100}


def rows(quick: bool) -> Iterator[Row]:
    """A first process trains, and this process is the second."""
    with tempfile.TemporaryDirectory() as name:
        folder, chance = Path(name), random.Random(7)
        text = write_text(folder)
        reference = reference_run(text, folder / "reference", SETTINGS)
        second, stale = Tally("second writer"), Tally("lock of a killed writer")
        for number in range(1 if quick else 10):
            run = folder / f"run-{number}"
            first = start(train_words(text, run, SETTINGS), folder / "log")
            wait_for(lambda run=run: last_step(run) > 25, first)
            for words in (["resume", str(run)], train_words(text, run, SETTINGS)):
                outcome = call(words)
                kind = f"{words[0]}: "
                second.add(
                    "" if outcome.is_one_line and first.poll() is None else f"{kind}not turned away: {outcome.ending}"
                )
            time.sleep(chance.uniform(0.0, 0.3))
            kill(first)
            again = call(["resume", str(run)])
            finished = "has finished" in again.said
            problem = (
                f"cannot go on: {again.ending}"
                if again.code and not finished
                else problem_of_run(run, at_least=200) or difference(run, reference)
            )
            stale.add(problem)
        yield second.row("resume and train, while the first writes")
        yield stale.row("kill -9, resumed at once, to the bits of an uninterrupted run")
