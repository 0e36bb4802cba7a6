"""Five hooks, in minGPT's spirit: a callback is shown what happened and may ask for something; it never touches the trainer."""

import json
import signal
from collections.abc import Callable
from dataclasses import dataclass
from enum import Flag, auto
from pathlib import Path
from types import FrameType
from typing import Any

from gptloom.inference.evaluation import Score


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
        loss: training loss of the last step in nats per token; a float only where one was due, for reading it waits for the device.
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

    def on_end(self, view: View) -> None:
        """After the last step, also when the run was stopped early or failed."""


class Metrics(Callback):
    """Appends to metrics.jsonl: a JSON object a line."""

    def __init__(self, path: Path, from_step: int = 0) -> None:
        """Go on from `from_step`: what an interrupted run logged beyond its last checkpoint is dropped, for it will be run again."""
        self.path = path
        if path.exists():
            kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= from_step]
            path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")

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

    def _write(self, *, event: str, view: View, **values: Any) -> None:
        line = {"event": event, "step": view.step, **values, "tokens": view.tokens, "seconds": round(view.seconds, 3)}
        append_json(self.path, line)


def append_json(path: Path, line: dict[str, Any]) -> None:
    """Add one JSON object as a line."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _step_of(line: str) -> int:
    """The step of a line of metrics; a line that a crash cut short counts as beyond every step."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return 2**63


class Samples(Callback):
    """Writes a little text after each evaluation: to samples.jsonl, and to whoever shows it."""

    def __init__(self, path: Path, write: Callable[[], str], show: Callable[[str], None]) -> None:
        """`write` makes the text; `show` is told."""
        self.path, self.write, self.show = path, write, show

    def after_evaluation(self, view: View, score: Score) -> None:
        """Write, keep, show."""
        text = self.write()
        append_json(self.path, {"step": view.step, "text": text})
        self.show(text)


class TensorBoard(Callback):
    """The same numbers as metrics.jsonl, as TensorBoard events."""

    def __init__(self, folder: Path) -> None:
        """Open the writer; the caller has checked that the package is there."""
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder))

    def after_step(self, view: View) -> Request:
        """Training loss and learning rate."""
        if view.logging:
            self.writer.add_scalar("loss/train", view.loss, view.step)
            self.writer.add_scalar("lr", view.lr, view.step)
        return Request.NOTHING

    def after_evaluation(self, view: View, score: Score) -> None:
        """Validation loss."""
        self.writer.add_scalar("loss/val", score.loss, view.step)

    def on_end(self, view: View) -> None:
        """Flush and close."""
        self.writer.close()


class Signals(Callback):
    """SIGINT and SIGTERM end the run after the step at hand, with the state saved; a second SIGINT ends it at once."""

    def __init__(self) -> None:
        """No signal yet."""
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def on_start(self, view: View) -> None:
        """Listen (only the main thread may)."""
        try:
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:
            self._before = {}

    def after_step(self, view: View) -> Request:
        """Pass the wish on."""
        return Request.NOTHING if self.received is None else Request.STOP | Request.SAVE

    def on_end(self, view: View) -> None:
        """Stop listening."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number
