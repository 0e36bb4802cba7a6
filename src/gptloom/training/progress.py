"""The output of a training on standard error: the plan and its warnings, then a line for each event or a live panel."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from gptloom.config.run import RunConfig
from gptloom.files import lasting
from gptloom.generate.task import Score
from gptloom.training.callbacks import Callback, Request, View
from gptloom.training.memory import held_bytes

LONG_RUN = 12 * 3600.0
"""Seconds from which a run is called long."""

EPOCHS_OF_NGRAMS = 3
"""Epochs after which n-gram embeddings without dropout harm more than they help (docs/recipes.md)."""

SMALL_TEXT = 10_000
"""Training tokens below which a model overfits at once."""


@dataclass(frozen=True)
class Plan:
    """Size, length, time and memory of a run, known before its first step.

    Attributes:
        config: the settings.
        parameters: number of the model's parameters.
        train_tokens: tokens of the training split.
        val_tokens: tokens of the validation split.
        steps: remaining steps, as far as known.
        batch: what a step reads, in words.
        tokens: targets of these steps, repeated ones included.
        epochs: passes of these steps over the training split.
        per_step: measured seconds per step.
        device: the device.
        dtype: dtype of the matrix products.
        memory: peak bytes so far, or None if the system does not report them.
    """

    config: RunConfig
    parameters: int
    train_tokens: int
    val_tokens: int
    steps: int
    batch: str
    tokens: int
    epochs: float
    per_step: float
    device: torch.device
    dtype: torch.dtype
    memory: int | None

    @property
    def seconds(self) -> float:
        """Expected training time in seconds."""
        return self.per_step * self.steps

    def lines(self) -> list[str]:
        """Return one line per fact."""
        m, t = self.config.model, self.config.train
        state = held_bytes(self.config, on_cpu=self.device.type == "cpu").total
        memory = f"memory   {_size(state)} for weights, gradients and optimizer" + (
            f"; {_size(self.memory)} in use at the peak so far" if self.memory else ""
        )
        steps = f"{'about ' if t.minutes else ''}{self.steps:,} steps"
        shape = f"{m.n_layer} layers, {m.n_head} heads, {m.n_embd} wide"
        sizes = f"context {m.block_size}, vocabulary {m.vocab_size:,}"
        dtype = str(self.dtype).removeprefix("torch.")
        pace = f"{1000 * self.per_step:.1f} ms a step, measured, on {self.device} in {dtype}"
        tokens = f"{self.tokens:,} tokens, {self.epochs:.1f} passes over the text"
        return [
            f"model    {self.parameters:,} parameters: {shape}, {sizes}",
            f"text     {self.train_tokens:,} tokens to train on, {self.val_tokens:,} to validate on",
            f"training {steps} of {self.batch}: {tokens}",
            memory,
            f"time     about {duration(self.seconds)} ({pace})",
        ]

    def warnings(self) -> list[str]:
        """Return a warning for each setting that is probably a mistake, with a cure."""
        model, block, found = self.config.model, self.config.model.block_size, []
        if self.seconds > LONG_RUN:
            long = f"this run will take about {duration(self.seconds)}"
            found.append(f"{long}; --minutes 60 fits it into an hour, a smaller --recipe learns sooner")
        if self.val_tokens <= block:
            short = f"the validation split ({self.val_tokens:,} tokens) is not longer than one context ({block})"
            found.append(f"{short}: its loss will say little; lower --model.block-size or add text")
        if self.train_tokens < SMALL_TEXT:
            few = f"{self.train_tokens:,} training tokens are very few: the model will overfit"
            found.append(f"{few}; trust the validation loss only, or add text")
        elif self.train_tokens < self.parameters / 100:
            many = f"{self.parameters:,} parameters are many for {self.train_tokens:,} training tokens"
            found.append(f"{many}; try a smaller model, or dropout")
        if model.ngrams > 1 and not model.ngram_dropout and self.epochs > EPOCHS_OF_NGRAMS:
            often = "the text will be read several times, and the n-gram embeddings will overfit"
            found.append(f"{often}; --model.ngrams 3 --model.ngram-dropout 0.5 may reach a lower validation loss")
        if self.epochs > 200 and self.config.train.patience is None and self.train_tokens >= SMALL_TEXT:
            often = "the text will be read over 200 times"
            found.append(f"{often}; --train.patience 3 stops when the validation loss no longer falls")
        return found


def _size(count: int) -> str:
    """Format bytes as MB or GB."""
    return f"{count / 1e6:,.0f} MB" if count < 1e9 else f"{count / 1e9:,.1f} GB"


class Display(Callback):
    """Prints plain lines; the base class of the live panel."""

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
        """Print a line after the first step and ten times in the run."""
        self._measure(view)
        progress = view.step / view.total
        if view.logging and (view.step == 1 or progress - self._shown >= 0.1 or progress == 1.0):
            self._shown = progress
            self.say(self.line(view))
        return Request.NOTHING

    def after_evaluation(self, view: View, score: Score) -> None:
        """Print the validation loss, and whether it is the best."""
        self._mark = None  # evaluation time is not training time
        self.say(self.evaluation_line(view, score))

    def show_sample(self, text: str) -> None:
        """Print the first lines of a sample, indented."""
        self.say("\n".join("    | " + line for line in text.strip("\n").splitlines()[:8]))

    def line(self, view: View) -> str:
        """Format the state of the run."""
        loss = "" if view.loss is None else f"  training loss {view.loss:.4f}"
        share = f" ({self._rate / self.peak:.0%} MFU)" if self.peak else ""
        rate = f"  {self._rate:,.0f} tokens/s{share}" if self._rate else ""
        left = max(0.0, (view.total - view.step) * view.seconds / max(1, view.step))
        return f"step {view.step:,} of {view.total:,}{loss}  lr {view.lr:.2e}{rate}  {duration(left)} left"

    def evaluation_line(self, view: View, score: Score) -> str:
        """Format an evaluation."""
        if not score.tokens:
            return f"step {view.step:,}: no validation loss, because the validation split has no token to predict"
        bits = f" ({score.bpb:.3f} bits per byte)" if score.bpb is not None and not score.is_broken else ""
        if view.step == 0:
            mark = ", untrained"
        elif view.best_loss is None:
            mark = "; none was finite so far"
        elif view.best_step is None:
            mark = f"; the best is {view.best_loss:.4f}, kept from before the run was resumed"
        elif view.best_step == view.step:
            mark = ", the best so far"
        else:
            mark = f"; the best is {view.best_loss:.4f} at step {view.best_step:,}"
        return f"step {view.step:,}: validation loss {score.loss:.4f}{bits}{mark}"

    def _measure(self, view: View) -> None:
        if self._mark is None:
            self._mark = (view.seconds, view.tokens)
        elif view.seconds - self._mark[0] > 0.5:
            self._rate = (view.tokens - self._mark[1]) / (view.seconds - self._mark[0])
            self._mark = (view.seconds, view.tokens)


class LiveDisplay(Display):
    """A progress bar on a terminal, with the figures to its right and the latest sample below it.

    rich is imported only where the panel is shown.

    Args:
        console: a `rich.console.Console`.
    """

    def __init__(self, console: Any) -> None:
        """Nothing is drawn yet."""
        from rich.live import Live
        from rich.progress import BarColumn, Progress, TextColumn

        super().__init__(lambda line: console.print(line, markup=False, highlight=False))
        self.console = console
        percentage, description = TextColumn("{task.percentage:>3.0f} %"), TextColumn("{task.description}")
        self.bar = Progress(BarColumn(bar_width=30), percentage, description, console=console)
        self.task = self.bar.add_task("starting", total=1.0)
        self.sample = ""
        self.live = Live(self._draw(), console=console, refresh_per_second=4)
        self._drawn = 0.0

    def on_start(self, view: View) -> None:
        """Show the panel."""
        super().on_start(view)
        self.live.start()

    def after_step(self, view: View) -> Request:
        """Move the bar, at most a few times per second."""
        from rich.markup import escape

        self._measure(view)
        now = time.monotonic()
        if view.logging or now - self._drawn > 0.3:
            self._drawn = now
            self.bar.update(self.task, completed=view.step / view.total, description=escape(self.line(view)))
        return Request.NOTHING

    def show_sample(self, text: str) -> None:
        """Show the sample in the panel."""
        self.sample = text
        self.live.update(self._draw())

    def on_end(self, view: View) -> None:
        """Close the panel."""
        self.live.stop()

    def _draw(self) -> Any:
        from rich.console import Group
        from rich.markup import escape
        from rich.panel import Panel

        lines = self.sample.strip("\n").splitlines()[: max(4, self.console.height - 8)]
        samples = [Panel(escape("\n".join(lines)), title="latest sample", border_style="dim")] if lines else []
        return Group(self.bar, *samples)


def make_display() -> Display:
    """Return a live panel on a terminal, and plain lines where standard error is piped or cannot move its cursor."""
    if sys.stderr is None or not sys.stderr.isatty():
        file = sys.stderr and lasting(sys.stderr, OSError)  # training does not end with `2>&1 | head`
        return Display(lambda line: print(line, file=file, flush=True))
    from rich.console import Console

    console = Console(stderr=True)
    return (
        LiveDisplay(console)
        if console.is_terminal
        else Display(lambda line: print(line, file=console.file, flush=True))
    )


def duration(seconds: float) -> str:
    """Format seconds: 45 s, 3 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60:02d} min"
