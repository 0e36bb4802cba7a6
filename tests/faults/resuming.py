"""Runs that are interrupted repeatedly, by kill -9 and signals, must end with the bits of an uninterrupted run."""

import random
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from faults.table import Row, Tally
from faults.trials import (
    call,
    difference,
    last_step,
    problem_of_run,
    reference_run,
    start,
    train_words,
    wait_for,
    write_text,
)

STEPS = 120
COMMON = {
    "train.steps": STEPS,
    "train.batch-size": 4,
    "train.micro-batch-size": 2,
    "train.eval-every": 8,
    "model.dropout": 0.2,
}

RECIPES: dict[str, dict[str, Any]] = {
    "decoder": {"recipe": "tiny"},
    "decoder, documents, bpe": {"recipe": "tiny", "tokenizer": "bpe:300", "data.sampling": "documents"},
    "decoder, shuffled, byte": {
        "recipe": "gpt2",
        "tokenizer": "byte",
        "data.sampling": "shuffled",
        "model.init": "gpt2",
    },
    "decoder, patience": {
        "recipe": "modern-tiny",
        "train.patience": 2,
        "train.learning-rate": 0.3,
        "train.eval-every": 5,
    },
    "lstm": {"recipe": "lstm", "model.n-head": None},
    "gru, shuffled": {"recipe": "lstm", "model.architecture": "gru", "data.sampling": "shuffled"},
    "encoder": {"recipe": "encoder"},
    "encoder, sentencepiece": {"recipe": "encoder", "tokenizer": "sentencepiece:300", "data.sampling": "shuffled"},
    "encoder-decoder": {
        "recipe": "translate",
        "text": "numbers:en-fr",
        "model.block-size": 64,
        "data.val-fraction": 0.003,
        "tokenizer": "char",
    },
    "epochs, samples, wsd": {
        "recipe": "tiny",
        "train.steps": None,
        "train.epochs": 3,
        "train.sample-tokens": 5,
        "train.schedule": "wsd",
    },
}


def rows(quick: bool) -> Iterator[Row]:
    """Each run has its own recipe and seed; the short version interrupts one run once."""
    with tempfile.TemporaryDirectory() as folder:
        yield _Trials(Path(folder)).runs(*((1, 1) if quick else (20, 4)))


class _Trials:
    """One run after the other, each compared with an uninterrupted one."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.chance, self.text = folder, random.Random(9), write_text(folder, 80)
        self.kills = self.signals = self.again = 0

    def runs(self, tries: int, interruptions: int) -> Row:
        tally = Tally("interrupted and resumed")
        for number in range(tries):
            name = list(RECIPES)[number % len(RECIPES)]
            problem = self._interrupted(number, RECIPES[name], interruptions)
            tally.add(problem and f"{problem} ({name})")
        return tally.row(
            f"{self.kills} by kill -9, {self.signals} by SIGTERM or SIGINT; dropout 0.2, micro-batches, "
            f"{min(tries, len(RECIPES))} recipes"
        )

    def _interrupted(self, number: int, recipe: dict[str, Any], interruptions: int) -> str:
        settings = COMMON | recipe | {"seed": 100 + number, "train.save-every": self.chance.randint(3, 9)}
        text = settings.pop("text", self.text)
        twin, run, log = self.folder / f"twin-{number}", self.folder / f"run-{number}", self.folder / "log"
        reference = reference_run(text, twin, settings)
        end = reference["progress"]["step"]
        words = train_words(text, run, settings)
        for part in range(interruptions):
            reached = last_step(run)
            process = start(words, log)
            step = reached + self.chance.randint(1, max(2, (end - reached) // (interruptions - part)))
            wait_for(lambda step=step: last_step(run) >= step, process)
            time.sleep(self.chance.uniform(0.0, 0.05))
            how = self.chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
            process.send_signal(how)
            code = process.wait()
            self.kills += how == signal.SIGKILL
            self.signals += how != signal.SIGKILL
            if code not in (0, -9, 130, 143):
                return f"exit {code}: {log.read_text(errors='replace').strip().splitlines()[-1:]}"
            if problem := problem_of_run(run):
                return problem
            words = ["resume", str(run)]
        outcome = call(words)
        if outcome.code and "has finished" not in outcome.said:
            return f"the run cannot go on: {outcome.ending}"
        return difference(run, reference)
