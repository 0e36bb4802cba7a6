"""Saving beside the training: a checkpoint is copied in memory at once, and written by a thread while the next steps run."""

import math
import threading
import time
from collections.abc import Callable
from pathlib import Path

from gptloom.config import TrainConfig
from gptloom.durable import replace_text
from gptloom.errors import MachineError
from gptloom.locate import checkpoint_name, checkpoint_names
from gptloom.training.checkpoint import Snapshot, prune, write_checkpoint


class Saver:
    """Writes one checkpoint at a time. A new one waits for the last, so that memory holds two states at most.

    Where writing takes longer than the steps between two saves, training waits for it: going on would gain nothing, and put more
    than one interval at stake. The first save of a process tells how long writing takes.

    The thread is a daemon: a process that must end at once leaves a temporary folder behind, and never half a checkpoint.
    """

    def __init__(self, run: Path, config: TrainConfig, say: Callable[[str], None]) -> None:
        """Write below `run`; `say` tells the user what could not be saved where the run is to go on."""
        self.run, self.config, self.say = run, config, say
        self._thread: threading.Thread | None = None
        self._saved: list[tuple[int, Path]] = []
        self._error: BaseException | None = None
        self._unsaved: MachineError | None = None
        self._writing = math.inf  # seconds that the last checkpoint took
        self._free_since = 0.0

    def save(self, take: Callable[[], Snapshot], *, best_so_far: bool) -> None:
        """Take a snapshot and begin to write it."""
        waits = self._is_slow()
        self._join()
        self._thread = threading.Thread(target=self._write, args=(take(), best_so_far), name="saving", daemon=True)
        self._thread.start()
        if waits:
            self._thread.join()
        self._free_since = time.monotonic()

    def _is_slow(self) -> bool:
        """Whether the steps since the last save took less time than writing it."""
        return time.monotonic() - self._free_since < self._writing

    def saved(self, *, wait: bool = False) -> list[tuple[int, Path]]:
        """Step and folder of each checkpoint that has come to exist since the last call.

        Raises:
            MachineError: one could not be written, and `on_save_failure` is stop.
        """
        if wait or (self._thread is not None and not self._thread.is_alive()):
            self._join()
        saved, self._saved = self._saved, []
        return saved

    def settle(self) -> list[tuple[int, Path]]:
        """Wait for the last checkpoint; a run may not end well without it.

        Raises:
            MachineError: it could not be written.
        """
        saved = self.saved(wait=True)
        if self._unsaved is not None:
            raise self._unsaved
        return saved

    def _join(self) -> None:
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        error, self._error = self._error, None
        if isinstance(error, MachineError) and self.config.on_save_failure == "continue":
            names = checkpoint_names(self.run)
            self.say(f"warning: {error.where}: {error.what}; training goes on, and the last good checkpoint is {names[-1] if names else 'none'}")
        elif error is not None:
            raise error

    def _write(self, snapshot: Snapshot, best_so_far: bool) -> None:
        progress, start = snapshot.progress, time.monotonic()
        try:
            path = write_checkpoint(self.run, snapshot)
            if best_so_far:
                replace_text(self.run / "best", path.name + "\n")
            prune(self.run, self.config.keep, path.name, checkpoint_name(progress.best_step or 0))
            self._saved.append((progress.step, path))
            self._writing = time.monotonic() - start
            self._unsaved = None
        except OSError as error:  # of the pointer: the checkpoint is there, but nothing says so
            self._error = self._unsaved = MachineError(f"cannot be written: {error.strerror or error}", where=str(self.run / "best"), cure="free some space")
        except MachineError as error:
            self._error = self._unsaved = error
        except BaseException as error:  # noqa: BLE001 - whatever it is, the training's thread must hear of it
            self._error = error
