"""What the pictures share: a figure, fonts that have the letters, labels that are thinned rather than crowded, numbers in cells."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.axes._base import _AxesBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font

from gptloom.plots.core import visible

COLORS = "cividis"
"""Made for colour-blind readers (Nuñez, Anderton and Renslow 2018): its lightness rises evenly, so it also survives a grey printer."""

MOST_LABELS = 64
"""Labels on one axis; beyond that only every second, third ... token is named."""

LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#6E6E6E")
"""Okabe and Ito's colours, in an order in which neighbours differ in lightness too; the last is a grey."""

DASHES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
Cell = tuple[float | int, float | int, float, str]
"""Column and row (where in the image), the value there, and what to write."""

_TICKS = (0.0, 0.02, 0.1, 0.25, 0.5, 1.0)
# Sans-serif fonts with many letters; the first one that is installed and has a letter is used for it.
_FALLBACKS = (
    "DejaVu Sans",
    "Noto Sans Mono CJK SC",
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Microsoft YaHei",
    "Hiragino Sans",
    "PingFang SC",
    "Arial Unicode MS",
)


def new_figure(width: float | int, height: float | int) -> Figure:
    """An empty figure of this size in inches, drawn off screen."""
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write the PNG; it says nothing about when or where it was made, so that the same numbers give the same bytes."""
    figure.savefig(path, metadata={"Software": None})


def token_font(size: float | int) -> font_manager.FontProperties:
    """The font for tokens: fixed width, with fallbacks."""
    return font_manager.FontProperties(family=list(_families()), size=size)


def drawable(text: str) -> str:
    """A token as a label: visible, without mathematics, and U+... for letters that no font here has."""
    seen = "".join(char if ord(char) in _letters() else f"U+{ord(char):04X}" for char in visible(text))
    return (seen if len(seen) <= 14 else seen[:13] + "…").replace("$", r"\$")


def label_tokens(
    axes: _AxesBase,
    which: str,
    tokens: Sequence[str],
    *,
    size: float | int = 9,
    most: int = MOST_LABELS,
    turn: bool = True,
) -> None:
    """Name the tokens along an axis of a grid whose cell i is centred on i; many tokens are named one in so many.

    Args:
        axes: where.
        which: "x" or "y".
        tokens: their texts.
        size: of the letters, in points.
        most: labels that there is room for.
        turn: write long ones along x upwards.
    """
    every = -(-len(tokens) // most)
    names = [drawable(token) for token in tokens]
    places = range(0, len(tokens), every)
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_ticks(list(places), [names[place] for place in places])
    for label in axis.get_ticklabels():
        label.set_fontproperties(token_font(size))
    axes.tick_params(axis="x" if which == "x" else "y", length=0 if every == 1 else 2, pad=2)
    if turn and which == "x" and max(map(len, names)) > 2:
        axes.tick_params(axis="x", rotation=90)


def weights_norm() -> PowerNorm:
    """Weights from 0 to 1 by their root, so that small ones can be told apart."""
    return PowerNorm(0.5, vmin=0.0, vmax=1.0)


def scale(figure: Figure, image: ScalarMappable, axes: Sequence[Axes], what: str) -> None:
    """A bar that tells which colour is which weight; `what` names the weights."""
    bar = figure.colorbar(image, ax=axes, ticks=_TICKS, shrink=0.8, aspect=30, pad=0.02)
    bar.ax.set_yticklabels([f"{tick:g}" for tick in _TICKS])
    bar.set_label(what)
    bar.outline.set_visible(False)


def write_cells(
    axes: Axes, image: ScalarMappable, cells: Sequence[Cell], *, size: float | int, tokens: bool = False
) -> None:
    """Write into cells of an image, dark on light ones and light on dark ones."""
    for column, row, value, text in cells:
        style: dict[str, Any] = {"fontproperties": token_font(size)} if tokens else {"fontsize": size}
        axes.text(column, row, text, ha="center", va="center", color=ink(image, value), **style)


def two_digits(share: float) -> str:
    """A share from 0 to 1 as .07 or 1, without the zero before the point, which would repeat in every cell."""
    return "1" if share >= 0.995 else f"{share:.2f}"[1:]


def masked_future(weights: Float[np.ndarray, "t s"]) -> np.ma.MaskedArray:
    """The weights, with what a causal model may not see left out, so that "may not" and "does not" look different."""
    future = np.triu(np.ones(weights.shape, dtype=bool), 1)
    causal = weights.shape[0] == weights.shape[1] and not weights[future].any()
    return np.ma.masked_array(weights, future if causal else np.zeros_like(future))


def ink(image: ScalarMappable, value: float) -> str:
    """Black or white, whichever can be read on the image's colour for this value."""
    color = np.asarray(image.to_rgba(np.array([value])))[0, :3]
    light = float(((color + 0.055) / 1.055) ** 2.4 @ (0.2126, 0.7152, 0.0722))
    return "white" if light < 0.18 else "black"  # where both have the same contrast (WCAG 2.1)


@lru_cache(maxsize=1)
def _families() -> tuple[str, ...]:
    installed = set(font_manager.get_font_names())
    return ("DejaVu Sans Mono", *(name for name in _FALLBACKS if name in installed))


@lru_cache(maxsize=1)
def _letters() -> frozenset[int]:
    fonts = [FT2Font(font_manager.findfont(name)) for name in _families()]
    return frozenset(code for font in fonts for code in font.get_charmap())
