"""The manager of a run's checkpoints: it copies the state at once, and a thread writes it while training goes on."""

import json
import math
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from torch import Tensor

from gptloom.checkpoint.find import checkpoint_name, checkpoint_names, find_bundle
from gptloom.checkpoint.format import load_weights, weights
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
from gptloom.errors import InputError, MachineError
from gptloom.files import remove, replace_text
from gptloom.model.base import LanguageModel


class CheckpointManager:
    """Writes checkpoints of what trains into a run folder, and brings the latest one back.

    One checkpoint is written at a time. A new one waits for the last, so that memory holds two states at most. Where
    writing takes longer than the steps between two saves, training waits for it: going on would gain nothing, and put
    more than one interval at stake. The first save of a process tells how long writing takes.

    The thread is a daemon: a process that must end at once leaves a temporary folder behind, and never half a
    checkpoint.

    Args:
        run: the run folder.
        config: all settings; written with each checkpoint.
        model: whose weights are saved, and loaded by `rollback`.
        tokenizer: written with each checkpoint.
        optimizer: whose memory is saved, and loaded by `rollback`.
        progress: how far the training is; looked at again at each save.
        horizon: how many steps there will be; looked at again at each save.
        say: tells the user what could not be saved where the run is to go on.

    Attributes:
        on_saved: called with step and folder of each finished checkpoint, in the training thread.
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
        """Nothing is written yet."""
        self.run, self.config, self.model, self.tokenizer = run, config, model, tokenizer
        self.optimizer, self.progress, self.horizon, self.say = optimizer, progress, horizon, say
        self.on_saved: Callable[[int, Path], None] = lambda _step, _path: None
        self._thread: threading.Thread | None = None
        self._written: list[tuple[int, Path]] = []
        self._error: BaseException | None = None
        self._unsaved: MachineError | None = None
        self._writing = math.inf  # seconds that the last checkpoint took
        self._free_since = 0.0

    def save(self, improved: bool) -> None:
        """Copy the state and begin to write it; `improved` says that it is the best so far.

        Raises:
            MachineError: the last checkpoint could not be written, and `on_save_failure` is stop.
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
        """Call `on_saved` for checkpoints that were finished since the last call, without waiting.

        Raises:
            MachineError: one could not be written, and `on_save_failure` is stop.
        """
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """The same, after waiting for the checkpoint that is being written."""
        self.abandon()
        written, self._written = self._written, []
        for step, path in written:
            self.on_saved(step, path)
        error, self._error = self._error, None
        if isinstance(error, MachineError) and self.config.train.on_save_failure == "continue":
            names = checkpoint_names(self.run)
            last = names[-1] if names else "none"
            self.say(f"warning: {error.where}: {error.what}; training goes on, and the last good checkpoint is {last}")
        elif error is not None:
            raise error

    def close(self) -> None:
        """The same at the end of a run, whose last checkpoint must exist.

        Raises:
            MachineError: it could not be written.
        """
        self.wait()
        if self._unsaved is not None:
            raise self._unsaved

    def abandon(self) -> None:
        """Only wait for the thread: after an error or a second interrupt.

        Otherwise the thread would still write into a run that the same process resumes.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def rollback(self) -> Progress | None:
        """Load weights and optimizer from the latest whole checkpoint; says how far that was, or None without one."""
        try:
            folder = find_bundle(self.run, "latest")
        except InputError:
            return None
        state = read_checkpoint(folder)
        load_weights(self.model, folder / "model.safetensors")
        load_state_tensors(self.optimizer, state.optimizer)
        return state.progress

    def keep_evidence(self, divergence: Divergence, batch: tuple[Tensor, ...]) -> Path | None:
        """Write diverged/checkpoints/step-N, from which a step that was not applied can be taken again.

        It holds the state before the step, the step's batch, and its numbers. Returns the folder; None where it could
        not be written, after a warning.
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
            if name != path.name:  # the latest is enough: they are as large as checkpoints
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
        """What the thread does."""
        progress, start = snapshot.progress, time.monotonic()
        try:
            path = write_checkpoint(self.run, snapshot)
            if best_so_far:
                replace_text(self.run / "best", path.name + "\n")
            prune(self.run, self.config.train.keep, path.name, checkpoint_name(progress.best_step or 0))
            self._written.append((progress.step, path))
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
