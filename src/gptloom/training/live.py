"""The live panel that a terminal shows during training."""

import time

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn

from gptloom.training.callbacks import Request, View
from gptloom.training.progress import Display


class LiveDisplay(Display):
    """A progress bar with the figures beside it and the latest sample below."""

    def __init__(self, console: Console) -> None:
        """Draw on this console."""
        super().__init__(lambda line: console.print(line, markup=False, highlight=False))
        self.console = console
        self.bar = Progress(
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.description}"),
            console=console,
        )
        self.task = self.bar.add_task("starting", total=1.0)
        self.sample = ""
        self.live = Live(self._draw(), console=console, refresh_per_second=4)
        self._drawn = 0.0

    def on_start(self, view: View) -> None:
        """Open the panel."""
        super().on_start(view)
        self.live.start()

    def after_step(self, view: View) -> Request:
        """Move the bar, at most a few times a second."""
        self._measure(view)
        now = time.monotonic()
        if view.logging or now - self._drawn > 0.3:
            self._drawn = now
            self.bar.update(self.task, completed=view.step / view.total, description=escape(self.line(view)))
        return Request.NOTHING

    def show_sample(self, text: str) -> None:
        """Put the sample into the panel."""
        self.sample = text
        self.live.update(self._draw())

    def on_end(self, view: View) -> None:
        """Close the panel."""
        self.live.stop()

    def _draw(self) -> Group:
        lines = self.sample.strip("\n").splitlines()[: max(4, self.console.height - 8)]
        return Group(
            self.bar, *([Panel(escape("\n".join(lines)), title="latest sample", border_style="dim")] if lines else [])
        )


def live_display() -> Display:
    """The panel on standard error, which is a terminal; plain lines where it cannot move its cursor."""
    console = Console(stderr=True)
    if console.is_terminal:
        return LiveDisplay(console)
    return Display(lambda line: print(line, file=console.file, flush=True))
