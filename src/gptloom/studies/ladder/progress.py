"""The progress display of a study with many trainings: a bar for all of them, or a line after each."""

import time
from collections.abc import Callable

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn

from gptloom.training.callbacks import Callback, Request, View
from gptloom.training.progress import duration

PRIOR = 0.05
"""Weight of the expected pace against the measured pace, as a share of all work."""


class Watch(Callback):
    """A display of plain lines, and the base class of the bar. Work is measured in expected seconds."""

    def __init__(self, say: Callable[[str], None]) -> None:
        """Set up the display; `say` prints a line."""
        self.say = say
        self.total = self.done = self.weight = 0.0
        self.label = ""
        self.spent, self._began = 0.0, time.monotonic()

    def expect(self, seconds: float) -> None:
        """Add this many expected seconds to the work."""
        self.total += seconds

    def begin(self, label: str, weight: float) -> None:
        """Start a training whose expected time is `weight` seconds."""
        self.label, self.weight = label, weight
        self._began = time.monotonic()
        self.show(0.0)

    def after_step(self, view: View) -> Request:
        """Show the progress of the current training."""
        self.show(view.step / view.total)
        return Request.NOTHING

    def finish(self, line: str) -> None:
        """End the current training, and print a line about it."""
        if self.weight:
            self.spent += time.monotonic() - self._began
        self.done, self.weight = self.done + self.weight, 0.0
        self.say(f"{line}  {self.left(0.0)}")
        self.show(0.0)

    def left(self, share: float) -> str:
        """The remaining time, when `share` of the current training is done.

        The estimate combines the expected pace and the measured pace, whose weight grows.
        """
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
        """Draw the progress; plain lines have no drawing."""

    def close(self) -> None:
        """End the display."""


class LiveWatch(Watch):
    """A progress bar of the whole study, below the lines."""

    def __init__(self, console: Console) -> None:
        """Set up the bar on a console."""
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
        """Remove the bar."""
        self.bar.stop()


def make_watch() -> Watch:
    """A bar if standard error is a terminal, else plain lines."""
    console = Console(stderr=True)
    if console.is_terminal:
        return LiveWatch(console)
    return Watch(lambda line: print(line, file=console.file, flush=True))
