"""What a person sees during training, on standard error: a live panel on a terminal, plain lines elsewhere."""

import sys
from collections.abc import Callable

from gptloom.generate.evaluate import Score
from gptloom.training.callbacks import Callback, Request, View


class Display(Callback):
    """Plain lines; the base of the live panel too."""

    def __init__(self, say: Callable[[str], None]) -> None:
        """`say` prints a line."""
        self.say = say
        self._mark: tuple[float, int] | None = None
        self.peak: float | None = None  # tokens/s at the device's published rate
        self._rate = 0.0
        self._shown = 0.0

    def on_start(self, view: View) -> None:
        """Start counting."""
        self._shown = view.step / view.total
        self._mark = (view.seconds, view.tokens)

    def after_step(self, view: View) -> Request:
        """A line ten times in the run and after the first step."""
        self._measure(view)
        progress = view.step / view.total
        if view.logging and (view.step == 1 or progress - self._shown >= 0.1 or progress == 1.0):
            self._shown = progress
            self.say(self.line(view))
        return Request.NOTHING

    def after_evaluation(self, view: View, score: Score) -> None:
        """The validation loss, and whether it is the best."""
        self._mark = None  # the time that evaluating took is not training time
        self.say(self.evaluation_line(view, score))

    def show_sample(self, text: str) -> None:
        """The sample's first lines, set in."""
        self.say("\n".join("    | " + line for line in text.strip("\n").splitlines()[:8]))

    def line(self, view: View) -> str:
        """Where the run is."""
        loss = "" if view.loss is None else f"  training loss {view.loss:.4f}"
        share = f" ({self._rate / self.peak:.0%} MFU)" if self.peak else ""
        rate = f"  {self._rate:,.0f} tokens/s{share}" if self._rate else ""
        left = max(0.0, (view.total - view.step) * view.seconds / max(1, view.step))
        return f"step {view.step:,} of {view.total:,}{loss}  lr {view.lr:.2e}{rate}  {duration(left)} left"

    def evaluation_line(self, view: View, score: Score) -> str:
        """What the whole validation split says."""
        bits = "" if score.bpb is None else f" ({score.bpb:.3f} bits per byte)"
        if view.step == 0:
            return f"step 0: validation loss {score.loss:.4f}{bits}, untrained"
        mark = (
            ", the best so far"
            if view.best_step == view.step
            else f"; the best is {view.best_loss:.4f} at step {view.best_step:,}"
        )
        return f"step {view.step:,}: validation loss {score.loss:.4f}{bits}{mark}"

    def _measure(self, view: View) -> None:
        if self._mark is None:
            self._mark = (view.seconds, view.tokens)
        elif view.seconds - self._mark[0] > 0.5:
            self._rate = (view.tokens - self._mark[1]) / (view.seconds - self._mark[0])
            self._mark = (view.seconds, view.tokens)


def make_display() -> Display:
    """The live panel on a terminal, plain lines when standard error is piped."""
    if sys.stderr is not None and sys.stderr.isatty():
        from gptloom.training.live import live_display  # rich is not loaded for nothing

        return live_display()
    return Display(lambda line: print(line, file=sys.stderr, flush=True))


def duration(seconds: float) -> str:
    """Seconds as people say them: 45 s, 3 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60:02d} min"
