"""Callbacks with six hooks, as in minGPT: a callback sees a `View` and returns a `Request`; it never has the trainer.

`Signals` and `Spikes` watch for signals and loss spikes. `Metrics`, `Samples` and `TensorBoard` write logs.
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
from gptloom.errors import GptloomWarning, MachineError, cure_for
from gptloom.files import Log
from gptloom.generate.task import Score


class Interrupted(BaseException):
    """A signal asks to stop during work that can be abandoned without harm.

    It is not an Exception, so that no handler of errors catches it.
    """


class Request(Flag):
    """Requests of a callback to the trainer after a step."""

    NOTHING = 0
    EVALUATE = auto()
    SAVE = auto()
    STOP = auto()


@dataclass(frozen=True)
class View:
    """The trainer's state, as its callbacks see it.

    Attributes:
        step: optimizer steps done.
        total: total number of steps, by the current plan.
        lr: learning rate of the last step.
        tokens: targets trained on so far.
        seconds: training time so far, including earlier parts of a resumed run.
        loss: training loss of the last step in nats per token; None before the first step, or if it is not finite.
        logging: whether this step logs metrics.
        best_loss: lowest validation loss so far.
        best_step: step of the lowest validation loss.
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
    """Base class; every hook does nothing."""

    def on_start(self, view: View) -> None:
        """Called before the first step of this process."""

    def after_step(self, view: View) -> Request:
        """Called after each optimizer step."""
        return Request.NOTHING

    def after_evaluation(self, view: View, score: Score) -> None:
        """Called after each evaluation."""

    def after_save(self, view: View, checkpoint: Path) -> None:
        """Called after a checkpoint is complete."""

    def after_divergence(self, view: View, divergence: Divergence) -> None:
        """Called after a step whose loss or gradient was not finite; the view is the state after the reaction."""

    def on_end(self, view: View) -> None:
        """Called after the last step, also if the run was stopped early or failed."""


class Signals(Callback):
    """Handles signals: SIGINT, SIGTERM and SIGHUP save and stop, a second SIGINT stops at once, SIGUSR1 only saves.

    The handlers only set flags. The flags are read between steps, forward passes, evaluation batches and tokens of a
    sample, so that no operation is interrupted halfway.
    """

    def __init__(self) -> None:
        """Start without a signal."""
        self.received: int | None = None
        self._interrupts = 0
        self._wants_save = False
        self._before: dict[int, Any] = {}

    def stopping(self) -> bool:
        """Whether a signal has asked the run to stop."""
        return self.received is not None

    def on_start(self, view: View) -> None:
        """Install the handlers (possible only in the main thread)."""
        names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")  # Windows lacks the last two
        numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
        try:
            self._before = {number: signal.signal(number, self._note) for number in numbers if not _is_hushed(number)}
        except ValueError:
            self._before = {}

    def after_step(self, view: View) -> Request:
        """Convert the flags to a request."""
        saves, self._wants_save = self._wants_save, False
        return Request.STOP | Request.SAVE if self.stopping() else Request.SAVE if saves else Request.NOTHING

    def on_end(self, view: View) -> None:
        """Restore the previous handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if number == getattr(signal, "SIGUSR1", None):
            self._wants_save = True
            return
        self.received = self.received or number
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            raise KeyboardInterrupt


def _is_hushed(number: int) -> bool:
    """Whether the command nohup asked this process to ignore that the terminal was closed."""
    return number == getattr(signal, "SIGHUP", None) and signal.getsignal(number) == signal.SIG_IGN


class Spikes(Callback):
    """Warns of loss spikes: a training loss above its running mean by 6 standard deviations and at least 0.1 nats.

    The running statistics cover about 50 steps. A spike is often the first sign that the learning rate is too high
    (Chowdhery et al. 2022, section 5.1). Training is not changed.
    """

    MEMORY = 50
    DEVIATIONS = 6.0
    LEAST = 0.1

    def __init__(self, say: Callable[[str], None]) -> None:
        """Start without statistics; `say` prints a warning."""
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
            self.say(
                f"warning: the training loss jumped to {view.loss:.3f} at step {view.step:,}; "
                f"its recent mean was {self._mean:.3f}"
            )
        self._mean += share * away
        self._variance = (1.0 - share) * (self._variance + share * away * away)
        self._seen += 1
        return Request.NOTHING


class Recorder(Callback):
    """A JSON Lines log of steps. Lines after the checkpoint of a resumed run are removed: those steps are repeated."""

    def __init__(self, path: Path, on_failure: Literal["stop", "continue"], progress: Progress) -> None:
        """Open the log and remove the lines after `progress`.

        Args:
            path: the file.
            on_failure: whether to stop or continue if a line cannot be written.
            progress: progress at the start of this process.
        """
        self.log, self.on_failure = Log(path), on_failure
        self._drop_beyond(progress.step, evaluated=progress.last_evaluated == progress.step)

    def after_divergence(self, view: View, divergence: Divergence) -> None:
        """Remove the lines of the steps that a rollback repeats; earlier divergences stay."""
        if divergence.action == "rollback":
            self._drop_beyond(view.step, always="divergence")

    def write(self, line: dict[str, Any]) -> None:
        """Append a line; if this fails and `on_failure` is "continue", keep it in memory until it can be written.

        Raises:
            MachineError: the line cannot be written, and `on_failure` is "stop".
        """
        waiting = bool(self.log.pending)
        try:
            self.log.append(line)
        except OSError as error:
            what = f"cannot be written: {error.strerror or error}"
            if self.on_failure == "stop":
                cure = cure_for(error, "free some space, then `gptloom resume`")
                raise MachineError(what, where=str(self.log.path), cure=cure) from None
            if not waiting:
                warnings.warn(
                    f"{self.log.path}: {what}; its lines are kept in memory and written later",
                    GptloomWarning,
                    stacklevel=2,
                )

    def _drop_beyond(self, step: int, *, evaluated: bool = True, always: str = "") -> None:
        """Remove the lines after `step`, and the evaluation and sample at `step` unless `evaluated`.

        Lines of the event `always` stay.
        """

        def wanted(line: dict[str, Any]) -> bool:
            at, event = line.get("step"), line.get("event")
            return isinstance(at, int) and (
                at < step or (at == step and (evaluated or event not in ("evaluation", None))) or event == always
            )

        self.log.keep(wanted)


class Metrics(Recorder):
    """Writes metrics.jsonl, one JSON object per line."""

    def after_step(self, view: View) -> Request:
        """Log the training loss if this step logs metrics."""
        if view.logging:
            self._write(event="train", split="train", view=view, loss=view.loss, lr=view.lr)
        return Request.NOTHING

    def after_evaluation(self, view: View, score: Score) -> None:
        """Log the validation loss."""
        self._write(event="evaluation", split="val", view=view, loss=score.loss, bpb=score.bpb)

    def after_save(self, view: View, checkpoint: Path) -> None:
        """Log the name of the checkpoint."""
        self._write(event="save", view=view, checkpoint=checkpoint.name)

    def after_divergence(self, view: View, divergence: Divergence) -> None:
        """Log the loss, the gradient norm and the reaction."""
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
    """Samples a text after each evaluation; writes it to samples.jsonl and shows it."""

    def __init__(
        self,
        path: Path,
        on_failure: Literal["stop", "continue"],
        progress: Progress,
        write: Callable[[], str],
        show: Callable[[str], None],
    ) -> None:
        """Open the log as `Recorder` does; `write` generates a text, `show` displays it."""
        super().__init__(path, on_failure, progress)
        self._sample, self._show = write, show

    def after_evaluation(self, view: View, score: Score) -> None:
        """Sample, log and show a text; a sample that a signal interrupts is discarded."""
        try:
            text = self._sample()
        except Interrupted:
            return
        self.write({"step": view.step, "text": text})
        self._show(text)


class TensorBoard(Callback):
    """Writes losses and learning rates as TensorBoard events."""

    def __init__(self, folder: Path, progress: Progress) -> None:
        """Open the writer and purge events after `progress`; the caller has checked that the package is installed."""
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder), purge_step=progress.step + 1 if progress.step else None)

    def after_step(self, view: View) -> Request:
        """Write the training loss and the learning rate."""
        if view.logging and view.loss is not None:
            self.writer.add_scalar("loss/train", view.loss, view.step)
            self.writer.add_scalar("lr", view.lr, view.step)
        return Request.NOTHING

    def after_evaluation(self, view: View, score: Score) -> None:
        """Write the validation loss."""
        self.writer.add_scalar("loss/val", score.loss, view.step)

    def on_end(self, view: View) -> None:
        """Close the writer."""
        self.writer.close()
