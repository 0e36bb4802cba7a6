"""Saving beside the training: a checkpoint is copied in memory at once, and written by a thread while the next steps run.

The keeper of a run: snapshots of what trains, handed to the saver, and brought back from the disk.
"""

import json
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from torch import Tensor

from gptloom.bundle import Bundle
from gptloom.checkpoint.find import checkpoint_name, checkpoint_names, find_bundle
from gptloom.checkpoint.format import load_weights, weights
from gptloom.checkpoint.state import Snapshot, prune, read_checkpoint, write_checkpoint
from gptloom.config.run import RunConfig, TrainConfig
from gptloom.errors import InputError, MachineError
from gptloom.io.atomic import remove, replace_text
from gptloom.training.interfaces import Divergence, Keeper, Optimizer, Progress
from gptloom.training.schedule import Horizon


class Saver:
    """Writes one checkpoint at a time. A new one waits for the last, so that memory holds two states at most.

    Where writing takes longer than the steps between two saves, training waits for it: going on would gain nothing, and
    put more than one interval at stake. The first save of a process tells how long writing takes.

    The thread is a daemon: a process that must end at once leaves a temporary folder behind, and never half a
        checkpoint.
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
            self.say(
                f"warning: {error.where}: {error.what}; training goes on, and the last good checkpoint is {names[-1] if names else 'none'}"
            )
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
            self._error = self._unsaved = MachineError(
                f"cannot be written: {error.strerror or error}", where=str(self.run / "best"), cure="free some space"
            )
        except MachineError as error:
            self._error = self._unsaved = error
        except BaseException as error:  # noqa: BLE001 - whatever it is, the training's thread must hear of it
            self._error = error


class RunKeeper(Keeper):
    """Keeps a run's state in its folder."""

    def __init__(
        self,
        saver: Saver,
        config: RunConfig,
        bundle: Bundle,
        optimizer: Optimizer,
        progress: Progress,
        horizon: Horizon,
    ) -> None:
        """All of these are looked at again whenever something is to be saved."""
        self.saver, self.config, self.bundle, self.optimizer, self.progress, self.horizon = (
            saver,
            config,
            bundle,
            optimizer,
            progress,
            horizon,
        )

    def save(self, improved: bool) -> None:
        """Copy the state and have it written."""
        self.saver.save(self._snapshot, best_so_far=improved)

    def saved(self, *, wait: bool = False) -> Sequence[tuple[int, Path]]:
        """See `Saver.saved`."""
        return self.saver.saved(wait=wait)

    def settle(self) -> Sequence[tuple[int, Path]]:
        """See `Saver.settle`."""
        return self.saver.settle()

    def rollback(self) -> Progress | None:
        """Bring weights and optimizer back to the latest whole checkpoint."""
        try:
            folder = find_bundle(self.saver.run, "latest")
        except InputError:
            return None
        state = read_checkpoint(folder)
        load_weights(self.bundle.model, folder / "model.safetensors")
        self.optimizer.restore(state.optimizer)
        return state.progress

    def keep_evidence(self, divergence: Divergence, batch: tuple[Tensor, ...]) -> Path | None:
        """Write diverged/checkpoints/step-N: a checkpoint from which the step can be taken again, its batch, and its numbers."""
        run = self.saver.run / "diverged"
        numbers = {key: str(value) if isinstance(value, float) else value for key, value in asdict(divergence).items()}
        *inputs, targets = batch
        tensors = {f"input-{number}": part.contiguous() for number, part in enumerate(inputs)} | {
            "targets": targets.contiguous()
        }
        try:
            path = write_checkpoint(
                run,
                self._snapshot(),
                files={"divergence.json": json.dumps(numbers) + "\n"},
                tensors={"batch.safetensors": tensors},
            )
        except MachineError as error:
            self.saver.say(f"warning: {error.where}: {error.what}")
            return None
        for name in checkpoint_names(run):
            if name != path.name:  # the latest is enough: they are as large as checkpoints
                remove(path.parent / name)
        return path

    def _snapshot(self) -> Snapshot:
        return Snapshot(
            config=self.config,
            tokenizer=self.bundle.tokenizer,
            weights=weights(self.bundle.model),
            optimizer=self.optimizer.tensors(),
            progress=replace(self.progress),
            horizon=replace(self.horizon, plans=list(self.horizon.plans)),
        )
