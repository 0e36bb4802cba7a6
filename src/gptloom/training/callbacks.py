"""Six hooks, in minGPT's spirit: a callback is shown what happened and may ask for something; it never touches the trainer."""

from dataclasses import dataclass
from enum import Flag, auto
from pathlib import Path

from gptloom.inference.evaluation import Score
from gptloom.training.job import Divergence


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
