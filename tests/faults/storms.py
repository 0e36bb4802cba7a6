"""Signals: one, two, many, and at difficult moments. The run saves its state, ends in time, and can be resumed."""

import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from faults.table import Row, Tally
from faults.trials import (
    being_written,
    call,
    difference,
    kill,
    last_step,
    log_lines,
    problem_of_run,
    reference_run,
    start,
    train_words,
    wait_for,
    write_text,
    write_wide_text,
)

TERM, INT, USR1 = signal.SIGTERM, signal.SIGINT, signal.SIGUSR1
CODES = {TERM: 143, INT: 130}
SECONDS = 5.0
"""Seconds within which a first signal ends the run."""

SETTINGS = {"train.steps": 120, "train.save-every": 20, "train.eval-every": 60}
LATE = {"train.save-every": 10**6, "train.eval-every": 10**6}
SLOW = {"train.steps": 8, "data.val-fraction": 0.9, "train.eval-batch-size": 1}
WIDE = {"train.steps": 15, "train.batch-size": 1, "train.save-every": 3, "train.eval-every": 10**6}
WIDE |= {"model.n-layer": 1, "model.n-head": 4, "model.n-embd": 256, "model.block-size": 8}


class Storm(NamedTuple):
    """The signals, their times, and the run."""

    title: str
    moment: str
    signals: tuple[int, ...]
    gap: float
    """Longest pause between two signals, in seconds."""
    run: str = "plain"


STORMS = [
    Storm("SIGTERM", "training", (TERM,), 0.0),
    Storm("SIGTERM twice", "training", (TERM, TERM), 0.1),
    Storm("SIGINT twice", "training", (INT, INT), 0.1),
    Storm("20 signals of three kinds", "training", (USR1, USR1, TERM, INT, USR1, *[TERM, INT, USR1] * 5), 0.02),
    Storm("SIGTERM in a save", "saving", (TERM,), 0.0, "wide"),
    Storm("SIGINT twice in a save", "saving", (INT, INT), 0.05, "wide"),
    Storm("SIGUSR1 at start-up", "starting", (USR1,), 0.0),
    Storm("SIGTERM before the first save", "first steps", (TERM,), 0.0, "late"),
    Storm("SIGTERM in a long evaluation", "evaluating", (TERM,), 0.0, "slow"),
    Storm("SIGTERM at start-up", "starting", (TERM,), 0.0),
    Storm("SIGINT at start-up", "starting", (INT,), 0.0),
]


def rows(quick: bool) -> Iterator[Row]:
    """The short version tries the two most difficult ones once."""
    with tempfile.TemporaryDirectory() as folder:
        trials = _Trials(Path(folder))
        if not quick:
            yield trials.saves(5)
        for storm in STORMS:
            if not quick or storm.title in ("20 signals of three kinds", "SIGINT twice in a save"):
                yield trials.storm(storm, 1 if quick else 3 if storm.run == "slow" else 8)


class _Trials:
    """Runs in separate processes, each compared with an uninterrupted one."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.chance, self.number = folder, random.Random(8), 0
        self.references: dict[str, Any] = {}
        long = folder / "long"
        long.mkdir()
        plain = write_text(folder)
        self.runs = {
            "plain": (plain, SETTINGS),
            "late": (plain, SETTINGS | LATE),
            "slow": (write_text(long, 4000), SETTINGS | SLOW),
            "wide": (write_wide_text(folder, 4000), WIDE),
        }

    def _start(self, kind: str) -> tuple[Path, subprocess.Popen[bytes], Path]:
        text, settings = self.runs[kind]
        if kind not in self.references:
            self.references[kind] = reference_run(text, self.folder / f"reference-{kind}", settings)
        self.number += 1
        run, log = self.folder / f"run-{self.number}", self.folder / f"log-{self.number}"
        return run, start(train_words(text, run, settings), log), log

    def saves(self, tries: int) -> Row:
        """Repeated SIGUSR1: the run saves, continues, and ends with the same bits."""
        tally, sent = Tally("SIGUSR1 storm"), 0
        for _ in range(tries):
            run, process, log = self._start("late")
            wait_for(lambda run=run: last_step(run) > 0, process)
            while process.poll() is None and sent < 50 * (tally.tries + 1):
                process.send_signal(USR1)
                sent += 1
                time.sleep(self.chance.uniform(0.0, 0.04))
            code = process.wait()
            saves = [line for line in log_lines(run) if line["event"] == "save"]
            problem = (
                f"exit {code}: {log.read_text(errors='replace').strip().splitlines()[-1:]}"
                if code
                else ""
                if len(saves) > 2
                else "nothing was saved"
            )
            tally.add(
                problem
                or problem_of_run(run, at_least=SETTINGS["train.steps"])
                or difference(run, self.references["late"])
            )
        return tally.row(f"{sent} signals")

    def storm(self, storm: Storm, tries: int) -> Row:
        """Wait for the moment, send the signals, and check how the run ends and resumes."""
        tally, longest, nothing = Tally(storm.title), 0.0, 0
        for _ in range(tries):
            run, process, log = self._start(storm.run)
            self._wait(storm, run, process, log)
            began, over = time.monotonic(), process.poll() is not None
            for number in storm.signals:
                if process.poll() is None:
                    process.send_signal(number)
                    time.sleep(self.chance.uniform(0.0, storm.gap))
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                kill(process)
            longest = max(longest, time.monotonic() - began)
            nothing += not (run / "run.json").exists()
            tally.add(self._problem(storm, run, process.returncode, time.monotonic() - began, log, over))
        return tally.row(f"ended within {longest:.1f} s" + (f"; {nothing} before there was a run" if nothing else ""))

    def _wait(self, storm: Storm, run: Path, process: subprocess.Popen[bytes], log: Path) -> None:
        match storm.moment:
            case "starting":
                time.sleep(
                    self.chance.uniform(0.2, 3.0)
                )  # Python must have started, for before that gptloom cannot handle signals
            case "saving":
                wait_for(lambda: last_step(run) > 4 and being_written(run), process)
            case "evaluating":
                wait_for(lambda: b"\ntime " in log.read_bytes(), process)
                time.sleep(0.5)
            case "first steps":
                wait_for(lambda: last_step(run) > 0, process)
            case _:
                step = self.chance.randint(1, 90)
                wait_for(lambda: last_step(run) >= step, process)

    def _problem(self, storm: Storm, run: Path, code: int, seconds: float, log: Path, over: bool) -> str:
        first = next((number for number in storm.signals if number in CODES), 0)
        accepted = (
            {CODES[number] for number in storm.signals if number in CODES}
            if len(storm.signals) > 2
            else {CODES[first]}
            if first
            else {0}
        )
        # Before gptloom installs its handler, and after it removes it, the signal ends the process. A shell reports the
        # same number for that.
        if storm.moment == "starting" or len(storm.signals) > 1:
            accepted |= {128 - code for code in accepted if code}
        if over:  # before anything was sent
            accepted = {0}
        if code not in accepted:
            return f"exit {code} after {seconds:.0f} s"
        if first and seconds > SECONDS:
            return f"it took more than {SECONDS:.0f} s to end"
        if "Traceback" in (said := log.read_text(errors="replace")):
            return f"a traceback, down to {said.strip().splitlines()[-1][:60]}"
        if not (run / "run.json").exists():
            return ""
        saved = last_step(run) if storm.moment != "starting" and len(storm.signals) == 1 else -1  # or it starts again
        if problem := problem_of_run(run, at_least=saved):
            return problem
        again = call(["resume", str(run)])
        if again.code and "has finished" not in again.said:
            return f"the run cannot go on: {again.ending}"
        return difference(run, self.references[storm.run])
