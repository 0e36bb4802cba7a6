"""Callbacks that write down what happened: metrics.jsonl, samples.jsonl, TensorBoard."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from gptloom.checkpoint.state import Divergence, Progress
from gptloom.errors import GptloomWarning, MachineError
from gptloom.files import Log
from gptloom.generate.evaluate import Score
from gptloom.training.callbacks import Callback, Request, View
from gptloom.training.interfaces import Interrupted


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
