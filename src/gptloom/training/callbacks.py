"""Six hooks, in minGPT's spirit: a callback is shown what happened and may ask for something; it never touches the trainer.

Callbacks that keep watch: signals from outside, and loss spikes from inside.
"""

import signal
from collections.abc import Callable
from dataclasses import dataclass
from enum import Flag, auto
from pathlib import Path
from types import FrameType
from typing import Any

from gptloom.checkpoint.state import Divergence
from gptloom.generate.evaluate import Score


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
