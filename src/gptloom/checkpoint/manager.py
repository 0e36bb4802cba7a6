"""Saving checkpoints in the background: the state is copied, and a thread writes the copy while training continues."""

import json
import math
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from torch import Tensor

from gptloom.checkpoint.format import (
    checkpoint_name,
    checkpoint_names,
    checkpoint_step,
    find_bundle,
    load_weights,
    weights,
)
from gptloom.checkpoint.state import (
    Divergence,
    Horizon,
    Optimizer,
    Progress,
    Snapshot,
    load_state_tensors,
    prune,
    read_checkpoint,
    state_tensors,
    write_checkpoint,
)
from gptloom.config.run import RunConfig
from gptloom.data.tokenizers import Tokenizer
from gptloom.errors import InputError, MachineError, cure_for
from gptloom.files import remove, replace_text
from gptloom.model.base import LanguageModel


class CheckpointManager:
    """Writes checkpoints of a training into a run folder, and loads the latest one.

    One checkpoint is written at a time, and a new save waits for the previous one, so that memory holds at most two
    copies of the state. If writing takes longer than the steps between two saves, training waits for the write:
    continuing would save no time, and a crash could lose more than one interval. The first save of a process measures
    the time of a write.

    The thread is a daemon: a process that must end at once leaves a temporary folder, and never a partial checkpoint.

    Args:
        run: the run folder.
        config: all settings; written with each checkpoint.
        model: its weights are saved, and loaded by `rollback`.
        tokenizer: written with each checkpoint.
        optimizer: its state is saved, and loaded by `rollback`.
        progress: progress of the training; read at each save.
        horizon: the planned number of steps; read at each save.
        say: prints a warning if a save failed and the run is to continue.

    Attributes:
        on_saved: called with the step and folder of each finished checkpoint, in the training thread.
    """

    def __init__(
        self,
        run: Path,
        *,
        config: RunConfig,
        model: LanguageModel,
        tokenizer: Tokenizer,
        optimizer: Optimizer,
        progress: Progress,
        horizon: Horizon,
        say: Callable[[str], None],
    ) -> None:
        """Store the arguments; writes nothing."""
        self.run, self.config, self.model, self.tokenizer = run, config, model, tokenizer
        self.optimizer, self.progress, self.horizon, self.say = optimizer, progress, horizon, say
        self.on_saved: Callable[[int, Path], None] = lambda _step, _path: None
        self._thread: threading.Thread | None = None
        self._written: list[tuple[int, Path]] = []
        self._error: BaseException | None = None
        self._unsaved: MachineError | None = None
        self._writing = math.inf  # seconds to write the last checkpoint
        self._free_since = 0.0

    def save(self, improved: bool) -> None:
        """Copy the state and start writing it.

        Args:
            improved: whether this checkpoint is the best so far.

        Raises:
            MachineError: the previous checkpoint could not be written, and `on_save_failure` is stop.
        """
        waits = self._is_slow()
        self.wait()
        self._thread = threading.Thread(
            target=self._write, args=(self._snapshot(), improved), name="saving", daemon=True
        )
        self._thread.start()
        if waits:
            self._thread.join()
        self._free_since = time.monotonic()

    def poll(self) -> None:
        """Call `on_saved` for the checkpoints finished since the last call, without waiting.

        Raises:
            MachineError: a checkpoint could not be written, and `on_save_failure` is stop.
        """
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Wait for the checkpoint that is being written, then do the same as `poll`."""
        self.abandon()
        written, self._written = self._written, []
        for step, path in written:
            self.on_saved(step, path)
        error, self._error = self._error, None
        if isinstance(error, MachineError) and self.config.train.on_save_failure == "continue":
            names = checkpoint_names(self.run)
            last = names[-1] if names else "none"
            self.say(f"warning: {error.where}: {error.what}; training continues; the last good checkpoint is {last}")
        elif error is not None:
            raise error

    def close(self) -> None:
        """Wait at the end of a run, whose last checkpoint must exist.

        Raises:
            MachineError: the last checkpoint could not be written.
        """
        self.wait()
        if self._unsaved is not None:
            raise self._unsaved

    def abandon(self) -> None:
        """Wait for the thread, and report nothing: for use after an error or a second interrupt.

        Otherwise the thread could write into a run that the same process resumes.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def rollback(self, step: int) -> Progress | None:
        """Load weights and optimizer state from the newest usable checkpoint before a step that diverged.

        A checkpoint of that step itself would repeat its loss and gradient, so it is only used if there is no other.

        Returns:
            The progress at that checkpoint; None if there is no intact checkpoint with finite weights.
        """
        names = checkpoint_names(self.run)
        for name in sorted(names, key=lambda name: (checkpoint_step(name) < step, checkpoint_step(name)), reverse=True):
            try:
                folder = find_bundle(self.run / "checkpoints" / name)
                state = read_checkpoint(folder)
                load_weights(self.model, folder / "model.safetensors")
                load_state_tensors(self.optimizer, state.optimizer)
            except (InputError, ValueError):
                continue
            return state.progress
        return None

    def discard_after(self, progress: Progress) -> None:
        """Remove the checkpoints after `progress`, which a rollback makes again, and correct `latest` and `best`.

        Raises:
            MachineError: the folder cannot be written.
        """
        try:
            for name in checkpoint_names(self.run):
                if checkpoint_step(name) > progress.step:
                    remove(self.run / "checkpoints" / name)
            replace_text(self.run / "latest", checkpoint_name(progress.step) + "\n")
            if progress.best_step is None:
                (self.run / "best").unlink(missing_ok=True)
            else:
                replace_text(self.run / "best", checkpoint_name(progress.best_step) + "\n")
        except OSError as error:
            what = f"cannot be written: {error.strerror or error}"
            raise MachineError(what, where=str(self.run), cure="free some space, then `gptloom resume`") from None

    def keep_evidence(self, divergence: Divergence, batch: tuple[Tensor, ...]) -> Path | None:
        """Save a step that was not applied to diverged/checkpoints/step-N, so that it can be repeated.

        The folder holds the state before the step, the batch, and the step's loss and gradient norm.

        Returns:
            The folder; None, after a warning, if it could not be written.
        """
        folder = self.run / "diverged"
        numbers = {key: str(value) if isinstance(value, float) else value for key, value in asdict(divergence).items()}
        *inputs, targets = batch
        tensors = {f"input-{number}": part.contiguous() for number, part in enumerate(inputs)} | {
            "targets": targets.contiguous()
        }
        try:
            path = write_checkpoint(
                folder,
                self._snapshot(),
                files={"divergence.json": json.dumps(numbers) + "\n"},
                tensors={"batch.safetensors": tensors},
            )
        except MachineError as error:
            self.say(f"warning: {error.where}: {error.what}")
            return None
        for name in checkpoint_names(folder):
            if name != path.name:  # keep only the latest: each is as large as a checkpoint
                remove(path.parent / name)
        return path

    def _is_slow(self) -> bool:
        """Whether the steps since the last save took less time than writing it."""
        return time.monotonic() - self._free_since < self._writing

    def _snapshot(self) -> Snapshot:
        return Snapshot(
            config=self.config,
            tokenizer=self.tokenizer,
            weights=weights(self.model),
            optimizer=state_tensors(self.optimizer),
            progress=replace(self.progress),
            horizon=replace(self.horizon, plans=list(self.horizon.plans)),
        )

    def _write(self, snapshot: Snapshot, best_so_far: bool) -> None:
        """Write a snapshot and update the pointers; runs in the thread."""
        progress, start = snapshot.progress, time.monotonic()
        try:
            path = write_checkpoint(self.run, snapshot)
            if best_so_far:
                replace_text(self.run / "best", path.name + "\n")
            prune(self.run, self.config.train.keep, path.name, checkpoint_name(progress.best_step or 0))
            self._written.append((progress.step, path))
            self._writing = time.monotonic() - start
            self._unsaved = None
        except OSError as error:  # from the pointer file: the checkpoint exists, but no file names it
            self._error = self._unsaved = MachineError(
                f"cannot be written: {error.strerror or error}",
                where=str(self.run / "best"),
                cure=cure_for(error, "free some space"),
            )
        except MachineError as error:
            self._error = self._unsaved = error
        except BaseException as error:  # noqa: BLE001 - any error must reach the training thread
            self._error = error
