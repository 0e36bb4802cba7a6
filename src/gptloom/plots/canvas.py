"""Helpers of the pictures: figures, colours, fonts with fallbacks, token labels, and numbers in cells."""

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
"""A colour map for colour-blind readers (Nuñez, Anderton and Renslow 2018).

Its lightness rises evenly, so that it can also be read in grey."""

MOST_LABELS = 64
"""Limit of labels on one axis; with more tokens, every second, third, ... token is named."""

LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#6E6E6E")
"""Okabe and Ito's colours and a grey, in an order in which neighbours also differ in lightness."""

DASHES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
Cell = tuple[float | int, float | int, float, str]
"""Column and row in the image, the value there, and the text to write."""

_TICKS = (0.0, 0.02, 0.1, 0.25, 0.5, 1.0)
# Sans-serif fonts with many letters. Each letter is drawn in the first installed font that contains it.
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
    """Return an empty figure of this size in inches, drawn off screen."""
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write the PNG without metadata of the software, so that the same numbers give the same bytes."""
    figure.savefig(path, metadata={"Software": None})


def token_font(size: float | int) -> font_manager.FontProperties:
    """Return the font for tokens: fixed width, with fallbacks."""
    return font_manager.FontProperties(family=list(_families()), size=size)


def drawable(text: str) -> str:
    """Return a token's label: visible, at most 14 characters, `$` escaped, and U+... for letters without a font."""
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
    """Label the tokens along an axis of a grid whose cell i is centred on i.

    Args:
        axes: the axes to label.
        which: "x" or "y".
        tokens: texts of the tokens.
        size: font size in points.
        most: limit of the labels; of more tokens, every n-th is labelled.
        turn: write long labels of the x axis vertically.
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
    """Map weights from 0 to 1 to colours by their square root, so that small ones can be distinguished."""
    return PowerNorm(0.5, vmin=0.0, vmax=1.0)


def scale(figure: Figure, image: ScalarMappable, axes: Sequence[Axes], what: str) -> None:
    """Add a colour bar; `what` is its label."""
    bar = figure.colorbar(image, ax=axes, ticks=_TICKS, shrink=0.8, aspect=30, pad=0.02)
    bar.ax.set_yticklabels([f"{tick:g}" for tick in _TICKS])
    bar.set_label(what)
    bar.outline.set_visible(False)


def write_cells(
    axes: Axes, image: ScalarMappable, cells: Sequence[Cell], *, size: float | int, tokens: bool = False
) -> None:
    """Write texts into cells of an image, in black or white, whichever is readable there."""
    for column, row, value, text in cells:
        style: dict[str, Any] = {"fontproperties": token_font(size)} if tokens else {"fontsize": size}
        axes.text(column, row, text, ha="center", va="center", color=ink(image, value), **style)


def two_digits(share: float) -> str:
    """Format a share from 0 to 1 as .07 or 1; a leading zero would be repeated in every cell."""
    return "1" if share >= 0.995 else f"{share:.2f}"[1:]


def masked_future(weights: Float[np.ndarray, "t s"]) -> np.ma.MaskedArray:
    """Mask the future positions of causal weights, so that masked weights and zero weights look different."""
    future = np.triu(np.ones(weights.shape, dtype=bool), 1)
    causal = weights.shape[0] == weights.shape[1] and not weights[future].any()
    return np.ma.masked_array(weights, future if causal else np.zeros_like(future))


def ink(image: ScalarMappable, value: float) -> str:
    """Return black or white, whichever is readable on the image's colour for this value."""
    color = np.asarray(image.to_rgba(np.array([value])))[0, :3]
    light = float(((color + 0.055) / 1.055) ** 2.4 @ (0.2126, 0.7152, 0.0722))
    return "white" if light < 0.18 else "black"  # at this luminance, both have the same contrast (WCAG 2.1)


@lru_cache(maxsize=1)
def _families() -> tuple[str, ...]:
    installed = set(font_manager.get_font_names())
    return ("DejaVu Sans Mono", *(name for name in _FALLBACKS if name in installed))


@lru_cache(maxsize=1)
def _letters() -> frozenset[int]:
    fonts = [FT2Font(font_manager.findfont(name)) for name in _families()]
    return frozenset(code for font in fonts for code in font.get_charmap())
