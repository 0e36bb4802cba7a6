"""Callbacks of the trainer, as in minGPT: signals, loss spikes, metrics.jsonl, samples.jsonl and TensorBoard.

A callback sees a `View` of the training and may return a `Request`. It never changes the trainer.
"""

import signal
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from enum import Flag, auto
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from gptloom.checkpoint.state import Divergence, Progress
from gptloom.errors import GptloomWarning, MachineError
from gptloom.files import Log
from gptloom.generate.task import Score


class Interrupted(BaseException):
    """A signal asks to stop during work that can be abandoned without harm.

    It is not an Exception, so that no handler of errors catches it.
    """


class Request(Flag):
    """A callback's request to the trainer after a step."""

    NOTHING = 0
    EVALUATE = auto()
    SAVE = auto()
    STOP = auto()


@dataclass(frozen=True)
class View:
    """The state of a training, as callbacks see it.

    Attributes:
        step: optimizer steps done.
        total: steps of the whole training, by the latest plan.
        lr: learning rate of the last step.
        tokens: targets trained on so far.
        seconds: training time so far, earlier parts of a resumed run included.
        loss: training loss of the last step in nats per token; None before the first step, or if it is not finite.
        logging: whether metrics are to be logged at this step.
        best_loss: lowest validation loss so far, in nats per token.
        best_step: its step.
    """

    step: int
    total: int
    lr: float
    tokens: int
    seconds: float
    loss: float | None
    logging: bool
    best_loss: float | None
    best_step: int | None


class Callback:
    """Base class: every hook does nothing."""

    def on_start(self, view: View) -> None:
        """Before the first step of this process."""

    def after_step(self, view: View) -> Request:
        """After each optimizer step."""
        return Request.NOTHING

    def after_evaluation(self, view: View, score: Score) -> None:
        """After an evaluation on the validation split."""

    def after_save(self, view: View, checkpoint: Path) -> None:
        """After a checkpoint is complete on the disk."""

    def after_divergence(self, view: View, divergence: Divergence) -> None:
        """After a step whose loss or gradient was not finite. The view is that after the rollback or skip."""

    def on_end(self, view: View) -> None:
        """After the last step, also if the run was stopped or failed."""


class Signals(Callback):
    """Handles SIGINT and SIGTERM (save and end), a second SIGINT (end now), and SIGUSR1 (save and continue).

    The handlers only set flags. They are read between steps, forward passes, batches of an evaluation and tokens of a
    sample, so that no work is left incomplete.
    """

    def __init__(self) -> None:
        """No signal has come yet."""
        self.received: int | None = None
        self._interrupts = 0
        self._wants_save = False
        self._before: dict[int, Any] = {}

    def stopping(self) -> bool:
        """Whether a signal has asked to end the run."""
        return self.received is not None

    def on_start(self, view: View) -> None:
        """Install the handlers; only the main thread can."""
        numbers = [signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else [])]
        try:
            self._before = {number: signal.signal(number, self._note) for number in numbers}
        except ValueError:
            self._before = {}

    def after_step(self, view: View) -> Request:
        """Request what the signals ask for."""
        saves, self._wants_save = self._wants_save, False
        return Request.STOP | Request.SAVE if self.stopping() else Request.SAVE if saves else Request.NOTHING

    def on_end(self, view: View) -> None:
        """Restore the earlier handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if number not in (signal.SIGINT, signal.SIGTERM):
            self._wants_save = True
            return
        self.received = self.received or number
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            raise KeyboardInterrupt


class Spikes(Callback):
    """Warns of a training loss more than six standard deviations, and 0.1 nats, above its mean over about 50 steps.

    A spike is often the first sign of a too high learning rate (Chowdhery et al. 2022, section 5.1).
    """

    MEMORY = 50
    DEVIATIONS = 6.0
    LEAST = 0.1

    def __init__(self, say: Callable[[str], None]) -> None:
        """`say` prints a line."""
        self.say = say
        self._mean = self._variance = 0.0
        self._seen = self._told = 0

    def after_step(self, view: View) -> Request:
        """Compare the loss with the running mean, then add it."""
        if view.loss is None:
            return Request.NOTHING
        away, share = view.loss - self._mean, 1.0 / min(self._seen + 1, self.MEMORY)
        ripe = self._seen >= self.MEMORY and view.step - self._told >= self.MEMORY
        if ripe and away > max(self.LEAST, self.DEVIATIONS * self._variance**0.5):
            self._told = view.step
            jump = f"the training loss jumped to {view.loss:.3f} at step {view.step:,}"
            self.say(f"warning: {jump}; lately it was {self._mean:.3f} on average")
        self._mean += share * away
        self._variance = (1.0 - share) * (self._variance + share * away * away)
        self._seen += 1
        return Request.NOTHING


class Recorder(Callback):
    """A file of JSON lines about steps; what an interrupted run logged beyond its checkpoint is dropped, for it will be run again."""

    def __init__(self, path: Path, on_failure: Literal["stop", "continue"], progress: Progress) -> None:
        """Go on from `progress`; `on_failure` says what to do when the disk does not take a line."""
        self.log, self.on_failure = Log(path), on_failure
        self._drop_beyond(progress.step, evaluated=progress.last_evaluated == progress.step)

    def after_divergence(self, view: View, divergence: Divergence) -> None:
        """After a rollback, the steps since then will be run again."""
        if divergence.action == "rollback":
            self._drop_beyond(view.step)

    def write(self, line: dict[str, Any]) -> None:
        """Append a line; where the disk is full and the run is to go on, it is kept in memory until it can be written."""
        waiting = bool(self.log.pending)
        try:
            self.log.append(line)
        except OSError as error:
            what = f"cannot be written: {error.strerror or error}"
            if self.on_failure == "stop":
                raise MachineError(
                    what, where=str(self.log.path), cure="free some space, then `gptloom resume`"
                ) from None
            if not waiting:
                warnings.warn(
                    f"{self.log.path}: {what}; its lines are kept in memory and written later",
                    GptloomWarning,
                    stacklevel=2,
                )

    def _drop_beyond(self, step: int, *, evaluated: bool = True) -> None:
        """Keep the lines up to `step`; an evaluation there, and its sample, are still to come unless `evaluated`."""

        def wanted(line: dict[str, Any]) -> bool:
            at = line.get("step")
            return isinstance(at, int) and (
                at < step or (at == step and (evaluated or line.get("event") not in ("evaluation", None)))
            )

        self.log.keep(wanted)


class Metrics(Recorder):
    """Appends to metrics.jsonl: a JSON object a line."""

    def after_step(self, view: View) -> Request:
        """Log the training loss where one is due."""
        if view.logging:
            self._write(event="train", split="train", view=view, loss=view.loss, lr=view.lr)
        return Request.NOTHING

    def after_evaluation(self, view: View, score: Score) -> None:
        """Log the validation loss."""
        self._write(event="evaluation", split="val", view=view, loss=score.loss, bpb=score.bpb)

    def after_save(self, view: View, checkpoint: Path) -> None:
        """Log that a checkpoint exists."""
        self._write(event="save", view=view, checkpoint=checkpoint.name)

    def after_divergence(self, view: View, divergence: Divergence) -> None:
        """Log what was not finite, and what was done."""
        super().after_divergence(view, divergence)
        found = {
            "at": divergence.step + 1,
            "loss": str(divergence.loss),
            "gradient_norm": str(divergence.gradient_norm),
            "lr": divergence.lr,
        }
        self._write(event="divergence", view=view, action=divergence.action, **found)

    def _write(self, *, event: str, view: View, **values: Any) -> None:
        self.write(
            {"event": event, "step": view.step, **values, "tokens": view.tokens, "seconds": round(view.seconds, 3)}
        )


class Samples(Recorder):
    """Writes a little text after each evaluation: to samples.jsonl, and to whoever shows it."""

    def __init__(
        self,
        path: Path,
        on_failure: Literal["stop", "continue"],
        progress: Progress,
        write: Callable[[], str],
        show: Callable[[str], None],
    ) -> None:
        """`write` makes the text; `show` is told."""
        super().__init__(path, on_failure, progress)
        self._sample, self._show = write, show

    def after_evaluation(self, view: View, score: Score) -> None:
        """Write, keep, show; a sample that a signal interrupts is given up."""
        try:
            text = self._sample()
        except Interrupted:
            return
        self.write({"step": view.step, "text": text})
        self._show(text)


class TensorBoard(Callback):
    """The same numbers as metrics.jsonl, as TensorBoard events."""

    def __init__(self, folder: Path, progress: Progress) -> None:
        """Open the writer, hiding what was written beyond `progress`; the caller has checked that the package is there."""
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder), purge_step=progress.step + 1 if progress.step else None)

    def after_step(self, view: View) -> Request:
        """Training loss and learning rate."""
        if view.logging and view.loss is not None:
            self.writer.add_scalar("loss/train", view.loss, view.step)
            self.writer.add_scalar("lr", view.lr, view.step)
        return Request.NOTHING

    def after_evaluation(self, view: View, score: Score) -> None:
        """Validation loss."""
        self.writer.add_scalar("loss/val", score.loss, view.step)

    def on_end(self, view: View) -> None:
        """Flush and close."""
        self.writer.close()
