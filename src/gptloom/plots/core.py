"""Tokens as people see them: visible spaces and line ends, and steps of surprise that every surface colours alike.

Pictures. Colours are Okabe and Ito's, which colour-blind readers can tell apart.
"""

import bisect
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SHOWN = {" ": "␣", "\n": "⏎", "\t": "⇥"}

STEPS = (0.5, 0.25, 0.1, 0.03, 0.01, 0.001)
"""Probabilities at which a token's colour changes; a token that got less than the last of them has the strongest."""

STEP_NAMES = ("p ≥ 50 %", "≥ 25 %", "≥ 10 %", "≥ 3 %", "≥ 1 %", "≥ 0.1 %", "less")


@dataclass(frozen=True)
class TokenView:
    """A token of a text and what a model thought of it.

    Attributes:
        text: the token, as it stands in the text.
        loss: -ln p in nats; None for a token that was given and not predicted.
        rank: how many tokens were held likelier; None where there is no loss.
        alternatives: the likeliest tokens with their probabilities, likeliest first.
    """

    text: str
    loss: float | None = None
    rank: int | None = None
    alternatives: tuple[tuple[str, float], ...] = ()

    @property
    def probability(self) -> float | None:
        """What the model gave this token."""
        return None if self.loss is None else math.exp(-self.loss)

    @property
    def step(self) -> int | None:
        """The step of surprise, 0 for a token that was expected, len(STEPS) for one that was not at all."""
        return None if self.loss is None else bisect.bisect_right([-math.log(step) for step in STEPS], self.loss - 1e-9)


def visible(text: str) -> str:
    r"""A token's text with every character to be seen: ␣ for a space, ⏎ for a line end, ⇥ for a tab, `\x1b` for what controls."""
    return "".join(SHOWN.get(char) or _spelled(char) for char in text)


def kind(text: str) -> str:
    """What sort of token it is, as a map's legend names it."""
    inner = text.strip()
    if not inner:
        return "space, line end"
    first = inner[0]
    if first.isdigit():
        return "digit"
    if not first.isalpha():
        return "sign"
    if len(inner) == 1 and unicodedata.normalize("NFKD", first)[0] in "aeiou":
        return "vowel"
    if first.isupper():
        return "capital"
    return "small letter" if len(inner) == 1 else "part of a word" if text[:1] == first else "start of a word"


def _spelled(char: str) -> str:
    category = unicodedata.category(char)
    if category[0] in "CZ":
        return char.encode("unicode_escape").decode("ascii")
    return f"◌{char}" if category[0] == "M" else char


BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#6E6E6E"


def draw_losses(
    path: Path,
    train: Sequence[tuple[int, float]],
    val: Sequence[tuple[int, float]],
    *,
    title: str,
    uniform: float,
    best: tuple[int, float] | None,
) -> None:
    """Training and validation loss against steps, as PNG.

    Args:
        path: where to write.
        train: (step, nats per token); shown lightly, for single batches are noisy.
        val: (step, nats per token) on the whole validation split.
        title: the run's name.
        uniform: the loss of a uniform guess, ln(vocab_size), as a reference line.
        best: (step, loss) of the best checkpoint, marked and named.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.axhline(uniform, color=GREY, linewidth=0.8, linestyle=":", label=f"uniform guess {uniform:.2f}")
    if train:
        axes.plot(*zip(*train, strict=True), color=BLUE, alpha=0.45, linewidth=1, label="training, single batches")
    if val:
        axes.plot(*zip(*val, strict=True), color=ORANGE, marker="o", markersize=3.5, label="validation, whole split")
    if best is not None:
        axes.annotate(
            f"best {best[1]:.4f}",
            best,
            xytext=(0, 14),
            textcoords="offset points",
            ha="right",
            color=ORANGE,
            arrowprops={"arrowstyle": "-", "color": ORANGE},
        )
    axes.set(title=title, xlabel="step", ylabel="loss (nats per token)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path)
