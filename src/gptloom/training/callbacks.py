"""Six hooks, in minGPT's spirit: a callback is shown what happened and may ask for something; it never touches the trainer.

Callbacks that keep watch: signals from outside, and loss spikes from inside.

Callbacks that write down what happened: metrics.jsonl, samples.jsonl, TensorBoard.
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
    """What a callback may ask of the trainer after a step."""

    NOTHING = 0
    EVALUATE = auto()
    SAVE = auto()
    STOP = auto()


@dataclass(frozen=True)
class View:
    """What the trainer shows its callbacks.

    Attributes:
        step: optimizer steps done.
        total: steps in all, by the present plan.
        lr: learning rate of the last step.
        tokens: targets trained on so far.
        seconds: training time so far, earlier parts of a resumed run included.
        loss: training loss of the last step in nats per token; None before the first, and where it is not finite.
        logging: a line of metrics is due at this step.
        best_loss: lowest validation loss so far.
        best_step: where that was.
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
    """Does nothing; override the hooks that matter."""

    def on_start(self, view: View) -> None:
        """Before the first step of this process."""

    def after_step(self, view: View) -> Request:
        """After each optimizer step."""
        return Request.NOTHING

    def after_evaluation(self, view: View, score: Score) -> None:
        """After the validation split has been read."""

    def after_save(self, view: View, checkpoint: Path) -> None:
        """After a checkpoint has been written whole."""

    def after_divergence(self, view: View, divergence: Divergence) -> None:
        """After a step whose loss or gradient was not finite; the view is already that of what was done about it."""

    def on_end(self, view: View) -> None:
        """After the last step, also when the run was stopped early or failed."""


class Signals(Callback):
    """SIGINT and SIGTERM end the run with its state saved; a second SIGINT ends it at once; SIGUSR1 saves, and the run goes on.

    The handlers only take notes, which are read between steps, forward passes, batches of an evaluation and tokens of a
    sample, so that nothing is left half done.
    """

    def __init__(self) -> None:
        """No signal yet."""
        self.received: int | None = None
        self._interrupts = 0
        self._wants_save = False
        self._before: dict[int, Any] = {}

    def stopping(self) -> bool:
        """Whether the run has been asked to end."""
        return self.received is not None

    def on_start(self, view: View) -> None:
        """Listen (only the main thread may)."""
        numbers = [signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else [])]
        try:
            self._before = {number: signal.signal(number, self._note) for number in numbers}
        except ValueError:
            self._before = {}

    def after_step(self, view: View) -> Request:
        """Pass the wish on."""
        saves, self._wants_save = self._wants_save, False
        return Request.STOP | Request.SAVE if self.stopping() else Request.SAVE if saves else Request.NOTHING

    def on_end(self, view: View) -> None:
        """Stop listening."""
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
    """Notices a training loss far above what it has lately been: more than six standard deviations, and 0.1 nats, with a memory of 50 steps.

    It changes nothing; a spike is often the first sign that a learning rate is too high (Chowdhery et al. 2022, section
    5.1).
    """

    MEMORY = 50
    DEVIATIONS = 6.0
    LEAST = 0.1

    def __init__(self, say: Callable[[str], None]) -> None:
        """`say` tells the user."""
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
                f"warning: the training loss jumped to {view.loss:.3f} at step {view.step:,}; lately it was {self._mean:.3f} on average"
            )
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
