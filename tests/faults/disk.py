"""A disk that becomes full or read-only during a run: a small tmpfs, or a limit on file sizes if mounting is denied."""

import os
import random
import resource
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from faults.table import Row, Tally
from faults.trials import call, difference, is_root, log_lines, problem_of_run, reference_run, train_words, write_text

SETTINGS = {"train.steps": 24, "train.save-every": 2, "train.eval-every": 8}
SIZE = 4 << 20


def rows(quick: bool) -> Iterator[Row]:
    """The short version needs no rights."""
    with tempfile.TemporaryDirectory() as folder, make_room(Path(folder), mounts=not quick) as room:
        trials = _Trials(Path(folder), room)
        yield trials.full("full disk", "stop", 2 if quick else 40)
        yield trials.full("full disk, going on", "continue", 2 if quick else 20)
        if room.is_mounted:
            yield trials.read_only(10)


class Room:
    """A folder that can be filled, emptied and locked; without a mount, the file size is limited instead."""

    def __init__(self, folder: Path, is_mounted: bool) -> None:
        self.folder, self.is_mounted = folder, is_mounted
        self.ballast = folder / "ballast"

    def fill(self, left: int) -> None:
        """Leave this many free bytes."""
        if not self.is_mounted:
            resource.setrlimit(resource.RLIMIT_FSIZE, (left, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
            return
        self.ballast.write_bytes(bytes(max(0, shutil.disk_usage(self.folder).free - left)))

    def free(self) -> None:
        """Free the space again."""
        if self.is_mounted:
            self.ballast.unlink(missing_ok=True)
        else:
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))

    def lock(self, mode: str) -> None:
        """Remount the folder as ro or rw."""
        subprocess.run(["mount", "-o", f"remount,{mode}", self.folder], check=True)


@contextmanager
def make_room(folder: Path, *, mounts: bool, size: int = SIZE) -> Iterator[Room]:
    """A new folder; it is removed after the block."""
    place = folder / "room"
    place.mkdir(exist_ok=True)
    mounted = (
        mounts
        and is_root()
        and subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], check=False).returncode == 0
    )
    try:
        yield Room(place, mounted)
    finally:
        if mounted:
            subprocess.run(["umount", "-l", place], check=True)


class _Trials:
    """A small run that is repeated with different disk faults."""

    def __init__(self, folder: Path, room: Room) -> None:
        self.room, self.chance = room, random.Random(6)
        self.text = write_text(folder)
        self.cache = {"data.cache": folder / "cache"}
        self.reference = reference_run(self.text, folder / "reference", SETTINGS)
        self.how = f"on a tmpfs of {SIZE >> 20} MB" if room.is_mounted else "by a limit on the size of files"

    def _run(self) -> Path:
        run = self.room.folder / "run"
        shutil.rmtree(run, ignore_errors=True)
        return run

    def full(self, title: str, setting: str, tries: int) -> Row:
        """The disk becomes full at a random step with a random rest, half the time 0; later it has space again."""
        tally, failed = Tally(title), 0
        for number in range(tries):
            run, at = self._run(), self.chance.randint(4, 12)
            left = 0 if number % 2 else self.chance.randrange(200_000)
            hooks = {at: lambda left=left: self.room.fill(left)}
            if setting == "continue":
                hooks[at + 7] = self.room.free
            try:
                outcome = call(
                    train_words(
                        self.text,
                        run,
                        SETTINGS,
                        self.cache,
                        {"train.on-save-failure": None if setting == "stop" else setting},
                    ),
                    hooks,
                )
            finally:
                self.room.free()
            failed += outcome.code == 3 or "could not be written" in outcome.said
            if setting == "stop" and outcome.code == 0:
                tally.add("" if left else "the run wrote to a full disk")
                continue
            if setting == "stop" and not (outcome.code == 3 and outcome.is_one_line):
                tally.add(f"the run did not say so: {outcome.ending}")
                continue
            if setting == "continue" and outcome.code:
                tally.add(f"the run did not go on: {outcome.ending}")
                continue
            # The save before `at` may be incomplete when the disk becomes full; the one before that is complete.
            tally.add(
                problem_of_run(run, at_least=at - 2 * SETTINGS["train.save-every"]) or self._goes_on(run, setting, at)
            )
        return tally.row(f"{self.how}; {failed} noticed it")

    def _goes_on(self, run: Path, setting: str, at: int) -> str:
        if setting == "continue":
            if not any(line["event"] == "save" and line["step"] > at for line in log_lines(run)):
                return "the run did not save again"
            return difference(run, {key: value for key, value in self.reference.items() if key != "metrics.jsonl"})
        again = call(["resume", str(run)])
        return f"the run cannot go on: {again.ending}" if again.code else difference(run, self.reference)

    def read_only(self, tries: int) -> Row:
        """Stop a run and remount its file system read-only; with `saving`, remount it during a save."""
        tally = Tally("read-only disk")
        for _ in range(tries):
            run, at = self._run(), self.chance.randint(4, 12)
            call(train_words(self.text, run, SETTINGS, self.cache), {at: lambda: os.kill(os.getpid(), signal.SIGTERM)})
            try:
                self.room.lock("ro")
                outcome = call(["resume", str(run)])
            finally:
                self.room.lock("rw")
            if not (outcome.code == 3 and outcome.is_one_line):
                tally.add(f"the run did not say so: {outcome.ending}")
                continue
            tally.add(problem_of_run(run, at_least=at) or self._goes_on(run, "stop", at))
        return tally.row("nothing can be resumed on it; once it can be written again, it goes on")
