"""Callbacks that keep watch: signals from outside, and loss spikes from inside."""

import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

from gptloom.training.callbacks import Callback, Request, View


class Signals(Callback):
    """SIGINT and SIGTERM end the run with its state saved; a second SIGINT ends it at once; SIGUSR1 saves, and the run goes on.

    The handlers only take notes, which are read between steps, forward passes, batches of an evaluation and tokens of a sample,
    so that nothing is left half done.
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

    It changes nothing; a spike is often the first sign that a learning rate is too high (Chowdhery et al. 2022, section 5.1).
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
            self.say(f"warning: the training loss jumped to {view.loss:.3f} at step {view.step:,}; lately it was {self._mean:.3f} on average")
        self._mean += share * away
        self._variance = (1.0 - share) * (self._variance + share * away * away)
        self._seen += 1
        return Request.NOTHING
