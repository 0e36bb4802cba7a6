"""What a user sees of a training on standard error: the plan and its warnings, then a line for each event."""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch

from gptloom.config.run import RunConfig
from gptloom.generate.task import Score
from gptloom.training.callbacks import Callback, Request, View
from gptloom.training.memory import held_bytes

LONG_RUN = 12 * 3600.0
"""Seconds from which a run is called long."""

EPOCHS_OF_NGRAMS = 3
"""Epochs after which the n-grams of a text harm more than they help, unless some positions go without (docs/recipes.md)."""

SMALL_TEXT = 10_000
"""Training tokens below which a model learns the text by heart."""


@dataclass(frozen=True)
class Plan:
    """The figures that a run can be judged by before it starts.

    Attributes:
        config: the settings.
        parameters: of the model.
        train_tokens: in the training split.
        val_tokens: in the validation split.
        steps: still to take, by what is known now.
        per_step: measured seconds a step.
        device: where it runs.
        dtype: of the matrix products.
        memory: peak bytes so far, or None where the system does not tell.
    """

    config: RunConfig
    parameters: int
    train_tokens: int
    val_tokens: int
    steps: int
    per_step: float
    device: torch.device
    dtype: torch.dtype
    memory: int | None

    @property
    def seconds(self) -> float:
        """How long training will take."""
        return self.per_step * self.steps

    @property
    def tokens(self) -> int:
        """How many tokens will be trained on."""
        return self.steps * self.config.train.batch_size * self.config.model.block_size

    def lines(self) -> list[str]:
        """The plan, a line a fact."""
        m, t = self.config.model, self.config.train
        state = held_bytes(self.config, on_cpu=self.device.type == "cpu").total
        memory = f"memory   {_size(state)} for weights, gradients and optimizer" + (
            f"; {_size(self.memory)} in use at the peak so far" if self.memory else ""
        )
        steps = f"{'about ' if t.minutes else ''}{self.steps:,} steps"
        passes = self.tokens / max(1, self.train_tokens)
        shape = f"{m.n_layer} layers, {m.n_head} heads, {m.n_embd} wide, context {m.block_size}, vocabulary {m.vocab_size:,}"
        pace = f"{1000 * self.per_step:.1f} ms a step, measured, on {self.device} in {str(self.dtype).removeprefix('torch.')}"
        return [
            f"model    {self.parameters:,} parameters: {shape}",
            f"text     {self.train_tokens:,} tokens to train on, {self.val_tokens:,} to validate on",
            f"training {steps} of {t.batch_size} x {m.block_size} tokens: {self.tokens:,} tokens, {passes:.1f} passes over the text",
            memory,
            f"time     about {duration(self.seconds)} ({pace})",
        ]

    def warnings(self) -> list[str]:
        """Settings that can hardly be meant, each with a cure."""
        block, found = self.config.model.block_size, []
        if self.seconds > LONG_RUN:
            found.append(
                f"this run will take about {duration(self.seconds)}; --minutes 60 fits it into an hour, a smaller --recipe learns sooner"
            )
        if self.val_tokens <= block:
            short = f"the validation split ({self.val_tokens:,} tokens) is not longer than one context ({block})"
            found.append(f"{short}: its loss will say little; lower --model.block-size or add text")
        if self.train_tokens < SMALL_TEXT:
            few = f"{self.train_tokens:,} training tokens are very few: the model will learn them by heart"
            found.append(f"{few}; trust the validation loss only, or add text")
        elif self.train_tokens < self.parameters / 100:
            found.append(
                f"{self.parameters:,} parameters are many for {self.train_tokens:,} training tokens; try a smaller model, or dropout"
            )
        if (
            self.config.model.ngrams > 1
            and not self.config.model.ngram_dropout
            and self.tokens / max(1, self.train_tokens) > EPOCHS_OF_NGRAMS
        ):
            often = "the text will be read several times, and its n-grams learned by heart"
            found.append(f"{often}; --model.ngrams 3 --model.ngram-dropout 0.5 may reach a lower validation loss")
        if (
            self.tokens / max(1, self.train_tokens) > 200
            and self.config.train.patience is None
            and self.train_tokens >= SMALL_TEXT
        ):
            found.append(
                "the text will be read over 200 times; --train.patience 3 stops when the validation loss no longer falls"
            )
        return found


def _size(count: int) -> str:
    """Bytes as MB or GB."""
    return f"{count / 1e6:,.0f} MB" if count < 1e9 else f"{count / 1e9:,.1f} GB"


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


def duration(seconds: float) -> str:
    """Seconds as people say them: 45 s, 3 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60:02d} min"


def make_display() -> Display:
    """Return a live panel on a terminal, and plain lines where standard error is piped."""
    if sys.stderr is not None and sys.stderr.isatty():
        from gptloom.training.live import live_display  # imports rich, which is not needed otherwise

        return live_display()
    return Display(lambda line: print(line, file=sys.stderr, flush=True))
