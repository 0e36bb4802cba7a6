"""What a person sees while a study runs many trainings: one bar for all of them, or a plain line after each."""

import time
from collections.abc import Callable

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn

from gptloom.training.callbacks import Callback, Request, View
from gptloom.training.progress import duration

PRIOR = 0.05
"""How much the expectation weighs against the pace so far, as a share of all work."""


class Watch(Callback):
    """Plain lines; the base of the bar too. Work is measured in expected seconds."""

    def __init__(self, say: Callable[[str], None]) -> None:
        """`say` prints a line."""
        self.say = say
        self.total = self.done = self.weight = 0.0
        self.label = ""
        self.spent, self._began = 0.0, time.monotonic()

    def expect(self, seconds: float) -> None:
        """This much more is to be done."""
        self.total += seconds

    def begin(self, label: str, weight: float) -> None:
        """A training that was expected to take `weight` seconds starts."""
        self.label, self.weight = label, weight
        self._began = time.monotonic()
        self.show(0.0)

    def after_step(self, view: View) -> Request:
        """Move on within the training at hand."""
        self.show(view.step / view.total)
        return Request.NOTHING

    def finish(self, line: str) -> None:
        """The training at hand has ended; `line` says how."""
        if self.weight:
            self.spent += time.monotonic() - self._began
        self.done, self.weight = self.done + self.weight, 0.0
        self.say(f"{line}  {self.left(0.0)}")
        self.show(0.0)

    def left(self, share: float) -> str:
        """How long the rest will take, when `share` of the training at hand is done: as expected, and more and more at the pace so far."""
        done = self.done + share * self.weight
        spent = self.spent + (time.monotonic() - self._began if self.weight else 0.0)
        believed = PRIOR * self.total
        remaining = self.total - done
        return (
            f"{duration(max(0.0, remaining * (spent + believed) / (done + believed)))} left"
            if remaining > 1e-9
            else "done"
        )

    def show(self, share: float) -> None:
        """Draw; plain lines have nothing to draw."""

    def close(self) -> None:
        """Nothing more will come."""


class LiveWatch(Watch):
    """A bar over the whole study, below the lines."""

    def __init__(self, console: Console) -> None:
        """Draw on this console."""
        super().__init__(lambda line: console.print(line, markup=False, highlight=False))
        self.bar = Progress(
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.description}"),
            console=console,
        )
        self.task = self.bar.add_task("starting", total=1.0)
        self._drawn = 0.0
        self.bar.start()

    def show(self, share: float) -> None:
        """Move the bar, at most a few times a second."""
        now = time.monotonic()
        if 0.0 < share < 1.0 and now - self._drawn < 0.3:
            return
        self._drawn = now
        done = (self.done + share * self.weight) / max(self.total, 1e-9)
        self.bar.update(self.task, completed=done, description=escape(f"{self.label}  {self.left(share)}"))

    def close(self) -> None:
        """Take the bar away."""
        self.bar.stop()


def make_watch() -> Watch:
    """The bar on a terminal, plain lines when standard error is piped."""
    console = Console(stderr=True)
    if console.is_terminal:
        return LiveWatch(console)
    return Watch(lambda line: print(line, file=console.file, flush=True))
