"""Who looks at whom: all heads at a glance, one head large, and the alignment of two texts."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from gptloom.pictures.canvas import COLORS, label_tokens, masked_future, new_figure, save, scale, two_digits, weights_norm, write_cells

LARGE = 40
"""Tokens that one large map can name and still be read from the back row."""

WEIGHT = "attention weight (each row sums to 1)"

_NUMBERED = 24  # tokens on an axis up to which each cell has room for its number


def draw_attention(path: Path, weights: Sequence[Float[np.ndarray, "h t t"]], tokens: Sequence[str], *, title: str) -> Figure:
    """Every head's map as PNG: a row a layer, a column a head, all in the same colours.

    Args:
        path: where to write.
        weights: attention weights, an array per layer; rows are the tokens that look, columns those that are looked at.
        tokens: the texts of the t tokens.
        title: above the picture.
    """
    layers, heads = len(weights), max(len(layer) for layer in weights)
    side = 2.4 if layers * heads > 4 else 3.6
    room = round(side * 10)
    figure = new_figure(max(6.0, side * heads + 1.6), side * layers + 1.2)
    grid = figure.subplots(layers, heads, squeeze=False)
    image = None
    for layer in range(layers):
        for head in range(heads):
            axes = grid[layer, head]
            if head >= len(weights[layer]):
                axes.set_axis_off()
                continue
            image = _map(axes, weights[layer][head])
            axes.set_title(f"layer {layer} · head {head}", fontsize=10)
            axes.set(xticks=[], yticks=[])
            if head == 0:
                label_tokens(axes, "y", tokens, size=8, most=room)
            if layer == layers - 1:
                label_tokens(axes, "x", tokens, size=8, most=room)
    figure.suptitle(title, fontsize=13)
    figure.supylabel("token that looks", fontsize=10)
    figure.supxlabel("token that is looked at", fontsize=10)
    assert image is not None, "there is at least one head"
    scale(figure, image, grid.ravel().tolist(), WEIGHT)
    save(figure, path)
    return figure


def draw_head(path: Path, weights: Float[np.ndarray, "t t"], tokens: Sequence[str], *, title: str) -> Figure:
    """One head's map, large, as PNG; of a long text its last `LARGE` tokens, and the title says so.

    Args:
        path: where to write.
        weights: rows are the tokens that look, columns those that are looked at; each row sums to 1.
        tokens: the texts of the t tokens.
        title: above the picture.
    """
    if len(tokens) > LARGE:
        seen = weights[-LARGE:, -LARGE:].sum(axis=1).mean()
        title += f"\nthe last {LARGE} of {len(tokens)} tokens; {seen:.0%} of what they look at is among them"
    figure, axes = _large(weights[-LARGE:, -LARGE:], tokens[-LARGE:], tokens[-LARGE:], title)
    axes.set_ylabel("token that looks", fontsize=12)
    axes.set_xlabel("token that is looked at", fontsize=12)
    save(figure, path)
    return figure


def draw_alignment(path: Path, weights: Float[np.ndarray, "t s"], source: Sequence[str], target: Sequence[str], *, title: str) -> Figure:
    """Cross-attention as PNG: which tokens of the source each token of the target came from.

    Args:
        path: where to write.
        weights: rows are the target's tokens, columns the source's; each row sums to 1. Average heads and layers beforehand.
        source: the texts of the s tokens that are read.
        target: the texts of the t tokens that are written.
        title: above the picture.
    """
    figure, axes = _large(weights, source, target, title)
    axes.set_ylabel("written", fontsize=12)
    axes.set_xlabel("read", fontsize=12)
    save(figure, path)
    return figure


def _large(weights: Float[np.ndarray, "t s"], columns: Sequence[str], rows: Sequence[str], title: str) -> tuple[Figure, Axes]:
    """A map with tokens on both axes, the columns' above it, and numbers where there is room."""
    numbered = max(weights.shape) <= _NUMBERED
    cell = 0.48 if numbered else max(0.24, 8.0 / max(weights.shape))
    figure = new_figure(max(5.5, cell * len(columns) + 2.6), max(4.0, cell * len(rows) + 1.8))
    axes = figure.add_subplot()
    image = _map(axes, weights)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    label_tokens(axes, "x", columns, size=13 if numbered else 11)
    label_tokens(axes, "y", rows, size=13 if numbered else 11)
    axes.set_title(title, fontsize=14, pad=14)
    if numbered:
        # Numbers that would read .00 are left out: the colour says as much, and the others stand out.
        shown = np.argwhere(~np.ma.getmaskarray(masked_future(weights)) & (weights >= 0.005)).tolist()
        cells = [(s, t, float(weights[t, s]), two_digits(float(weights[t, s]))) for t, s in shown]
        write_cells(axes, image, cells, size=9)
    scale(figure, image, [axes], WEIGHT)
    return figure, axes


def _map(axes: Axes, weights: Float[np.ndarray, "t s"]) -> AxesImage:
    image = axes.imshow(masked_future(weights), cmap=COLORS, norm=weights_norm(), interpolation="nearest")
    axes.spines[:].set_visible(False)
    return image
