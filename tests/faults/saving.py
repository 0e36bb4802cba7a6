"""A fault at each disk operation of a save: no space left, an I/O error, or a crash."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from faults.injection import Disk, Kind, unsynced
from faults.table import Row, Tally
from faults.trials import Outcome, call, difference, problem_of_run, reference_run, train_words, write_text

SETTINGS = {"train.steps": 6, "train.save-every": 2, "train.eval-every": 3, "train.keep": 1}
TITLES: dict[Kind, str] = {
    "full": "no space in a save",
    "broken": "I/O error in a save",
    "read-only": "read-only in a save",
    "crash": "crash in a save",
}


def rows(quick: bool) -> Iterator[Row]:
    """All operations; the short version takes a few of them."""
    with tempfile.TemporaryDirectory() as folder:
        trials = _Trials(Path(folder))
        requests = trials.requests()
        print(f"  {len(requests)} operations in the saves after the first", file=sys.stderr)
        yield trials.order(requests)
        step = len(requests) // 3 + 1 if quick else 1
        for offset, (kind, title) in enumerate(TITLES.items()):
            yield trials.each(title, kind, range(offset, len(requests), step))
        yield trials.ends(range(2, len(requests), len(requests) // (1 if quick else 8)))


class _Trials:
    """A small run that is repeated with a fault each time."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.numbers = folder, count()
        self.text = write_text(folder)
        self.reference = reference_run(self.text, folder / "reference", SETTINGS)

    def train(self, at: int, kind: Kind) -> tuple[Path, Disk, Outcome]:
        """A run whose saves after the first are watched."""
        run = self.folder / f"run-{next(self.numbers)}"
        disk = Disk(run, (run / "checkpoints" / "step-000002").exists, at, kind)
        with disk:
            # Counting starts when the first checkpoint is complete, and continues after it is removed.
            first = disk.armed
            disk.armed = lambda: bool(disk.trace) or first()
            outcome = call(train_words(self.text, run, SETTINGS))
        return run, disk, outcome

    def requests(self) -> list[tuple[str, ...]]:
        """The disk operations of a run without faults."""
        return self.train(-1, "none")[1].trace

    def order(self, requests: list[tuple[str, ...]]) -> Row:
        """Whether renamed files and the renames are synced to the disk."""
        tally = Tally("order of writes, syncs and renames")
        run = next(
            Path(path) for _, *paths in requests for path in paths if Path(path).parent.name == "checkpoints"
        ).parent.parent
        problems = unsynced(requests, run)
        for problem in problems or [""]:
            tally.add(problem)
        names = [name for name, *_ in requests]
        return tally.row(", ".join(f"{names.count(name)} {name}" for name in sorted(set(names))))

    def each(self, title: str, kind: Kind, places: range) -> Row:
        """One run for each operation."""
        tally, gone_on = Tally(title), 0
        for at in places:
            run, disk, outcome = self.train(at, kind)
            where = " ".join([disk.trace[at][0], *(Path(path).name for path in disk.trace[at][1:])])
            problem = self._problem(run, kind, outcome)
            gone_on += outcome.code == 0
            tally.add(problem and f"{problem} ({where})")
        return tally.row(f"{gone_on} of the runs could go on" if gone_on else "")

    def _problem(self, run: Path, kind: Kind, outcome: Outcome) -> str:
        if kind != "crash" and outcome.code and not (outcome.is_one_line and outcome.code == 3):
            return f"the error has no type: {outcome.ending}"
        if problem := problem_of_run(run, at_least=2):
            return problem
        if outcome.code == 0:
            return difference(run, self.reference)
        again = call(["resume", str(run)])
        finished = again.code == 2 and "has finished" in again.said
        if again.code and not finished:
            return f"the run cannot go on: {again.ending}"
        return problem_of_run(run, at_least=6) or difference(run, self.reference)

    def ends(self, places: range) -> Row:
        """The same with real processes that end by os._exit during a save."""
        tally = Tally("_exit in a save")
        for at in places:
            run = self.folder / f"run-{next(self.numbers)}"
            words = train_words(self.text, run, SETTINGS)
            code = f"""
from pathlib import Path
from faults.injection import Disk
from faults.trials import call
run = Path({str(run)!r})
with Disk(run, lambda: disk.trace or (run / "checkpoints" / "step-000002").exists(), {at}, "exit") as disk:
    call({words!r})
"""
            path = os.pathsep.join([str(Path(__file__).parent.parent), *sys.path])
            ended = subprocess.run(
                [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, check=False, capture_output=True
            )
            tally.add(
                self._problem(run, "crash", Outcome(ended.returncode, ""))
                if ended.returncode == 9
                else f"ended with {ended.returncode}"
            )
        return tally.row()
