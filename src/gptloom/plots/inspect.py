"""Who looks at whom: all heads at a glance, one head large, and the alignment of two texts.

What each layer would say, where the tokens lie, and how far back a loss reaches.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from gptloom.plots.canvas import (
    COLORS,
    DASHES,
    LINES,
    MARKERS,
    drawable,
    ink,
    label_tokens,
    masked_future,
    new_figure,
    save,
    scale,
    token_font,
    two_digits,
    weights_norm,
    write_cells,
)
from gptloom.plots.core import kind

LARGE = 40
"""Tokens that one large map can name and still be read from the back row."""

WEIGHT = "attention weight (each row sums to 1)"

_NUMBERED = 24  # tokens on an axis up to which each cell has room for its number


def draw_attention(
    path: Path, weights: Sequence[Float[np.ndarray, "_ t t"]], tokens: Sequence[str], *, title: str
) -> Figure:
    """Every head's map as PNG: a row a layer, a column a head, all in the same colours.

    Args:
        path: where to write.
        weights: attention weights, an array (heads, t, t) per layer; rows are the tokens that look, columns those that
            are looked at.
        tokens: the texts of the t tokens.
        title: above the picture.
    """
    layers, heads = len(weights), max(len(layer) for layer in weights)
    side = 2.4 if layers * heads > 4 else 3.6
    room = round(side * 9)
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
                label_tokens(axes, "y", tokens, size=7, most=room)
            if layer == layers - 1:
                label_tokens(axes, "x", tokens, size=7, most=room)
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


def draw_alignment(
    path: Path, weights: Float[np.ndarray, "t s"], source: Sequence[str], target: Sequence[str], *, title: str
) -> Figure:
    """Cross-attention as PNG: which tokens of the source each token of the target came from.

    Args:
        path: where to write.
        weights: rows are the target's tokens, columns the source's; each row sums to 1. Average heads and layers
            beforehand.
        source: the texts of the s tokens that are read.
        target: the texts of the t tokens that are written.
        title: above the picture.
    """
    figure, axes = _large(weights, source, target, title)
    axes.set_ylabel("written", fontsize=12)
    axes.set_xlabel("read", fontsize=12)
    save(figure, path)
    return figure


def _large(
    weights: Float[np.ndarray, "t s"], columns: Sequence[str], rows: Sequence[str], title: str
) -> tuple[Figure, Axes]:
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
    figure.suptitle(title, fontsize=14)
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


WIDE = 14.0
"""Inches that the lens's columns may take; what a longer text has before that is left out."""

_NAMED = 150  # points of a map that can all be named


def draw_lens(
    path: Path,
    guesses: Sequence[Sequence[tuple[str, float]]],
    tokens: Sequence[str],
    following: Sequence[str | None],
    names: Sequence[str],
    *,
    title: str,
) -> Figure:
    """The logit lens as PNG: the likeliest next token after each layer, the last layer on top.

    Args:
        path: where to write.
        guesses: for each layer, for each token, the likeliest next token and its probability.
        tokens: the texts of the tokens that were read.
        following: the token that really follows each of them, None where the text ends.
        names: of the layers.
        title: above the picture.
    """
    texts = [[drawable(text) for text, _ in row] for row in guesses]
    longest = max(len(text) for row in [*texts, list(map(drawable, tokens))] for text in row)
    cell = max(0.5, 0.12 * longest + 0.08)
    shown = min(len(tokens), int(WIDE / cell))
    if shown < len(tokens):
        title += f"\nthe last {shown} of {len(tokens)} tokens"
    texts, guesses, tokens, following = (
        [row[-shown:] for row in texts],
        [row[-shown:] for row in guesses],
        tokens[-shown:],
        following[-shown:],
    )
    figure = new_figure(max(6.0, cell * len(tokens) + 2.4), 0.52 * len(guesses) + 2.6)
    axes = figure.add_subplot()
    chances = np.array([[chance for _, chance in row] for row in guesses])
    image = axes.imshow(
        chances, cmap=COLORS, norm=weights_norm(), aspect="auto", interpolation="nearest", origin="lower"
    )
    places = [(layer, place) for layer in range(len(guesses)) for place in range(len(tokens))]
    write_cells(
        axes,
        image,
        [(place, layer + 0.16, float(chances[layer, place]), texts[layer][place]) for layer, place in places],
        size=12,
        tokens=True,
    )
    write_cells(
        axes,
        image,
        [
            (place, layer - 0.27, float(chances[layer, place]), two_digits(float(chances[layer, place])))
            for layer, place in places
        ],
        size=8,
    )
    for layer, place in places:
        if guesses[layer][place][0] == following[place]:
            axes.add_patch(
                Rectangle(
                    (place - 0.46, layer - 0.46),
                    0.92,
                    0.92,
                    fill=False,
                    edgecolor=ink(image, float(chances[layer, place])),
                    linewidth=1.6,
                )
            )
    label_tokens(axes, "x", tokens, size=12, turn=False)
    axes.set_yticks(range(len(names)), list(names))
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("read", fontsize=12)
    axes.spines[:].set_visible(False)
    above = axes.secondary_xaxis("top")
    above.set_xlabel("what really follows (framed where the guess is right)", fontsize=12)
    label_tokens(above, "x", [text if text is not None else "?" for text in following], size=12, turn=False)
    above.spines[:].set_visible(False)
    figure.suptitle(title, fontsize=13)
    scale(figure, image, [axes], "probability of the guess")
    save(figure, path)
    return figure


def draw_embedding(
    path: Path,
    points: Float[np.ndarray, "v 2"],
    tokens: Sequence[str],
    shares: tuple[float, float],
    *,
    marked: Sequence[int],
    title: str,
) -> Figure:
    """The token table in the plane as PNG.

    Args:
        path: where to write.
        points: the tokens' coordinates, see `trace.principal_axes`.
        tokens: the texts of all v tokens.
        shares: of the table's variance, along each of the two axes.
        marked: ids to name where there are too many tokens to name all.
        title: above the picture.
    """
    figure = new_figure(10, 7.5)
    axes = figure.add_subplot()
    kinds = [kind(token) for token in tokens]
    named = list(range(len(tokens))) if len(tokens) <= _NAMED else sorted(set(marked))
    strong = set(named)
    for number, name in enumerate(sorted(set(kinds), key=lambda one: (-kinds.count(one), one))):
        chosen = np.array([index for index, one in enumerate(kinds) if one == name])
        is_named = np.array([index in strong for index in chosen])
        style: dict[str, Any] = {"color": LINES[number % len(LINES)], "marker": MARKERS[number % len(MARKERS)]}
        for which, size, alpha in ((chosen[~is_named], 12, 0.35), (chosen[is_named], 32, 1.0)):
            axes.scatter(points[which, 0], points[which, 1], s=size, alpha=alpha, linewidths=0, **style)
        axes.scatter([], [], s=32, linewidths=0, label=f"{name} ({len(chosen)})", **style)
    names = [drawable(tokens[index]) for index in named]
    for index, name, offset in zip(named, names, _beside(points[named], names), strict=True):
        text = axes.annotate(
            name, points[index].tolist(), xytext=offset, textcoords="offset points", ha="center", va="center"
        )
        text.set_fontproperties(token_font(12))
        text.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
    if len(named) < len(tokens):
        title += f"\n{len(tokens):,} tokens; those of the text are named"
    axes.set_title(title, fontsize=13)
    axes.set_xlabel(f"first principal axis ({shares[0]:.0%} of the variance)", fontsize=12)
    axes.set_ylabel(f"second principal axis ({shares[1]:.0%})", fontsize=12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_aspect("equal", adjustable="datalim")
    figure.legend(loc="outside right upper", frameon=False, fontsize=11)
    save(figure, path)
    return figure


def draw_gradient_by_distance(
    path: Path, curves: Mapping[str, tuple[Sequence[int], Sequence[float]]], *, title: str
) -> Figure:
    """How strongly a loss depends on tokens further back, as PNG: a curve a model, each relative to its own distance 0.

    Args:
        path: where to write.
        curves: {name: (distances in tokens, gradient norms)} as `trace.gradient_by_distance` gives them, from distance
            0 on.
        title: above the picture.
    """
    figure = new_figure(9, 5)
    axes = figure.add_subplot()
    for number, (name, (distance, size)) in enumerate(curves.items()):
        relative = np.asarray(size) / size[0] if size[0] else np.zeros(len(size))
        style: dict[str, Any] = {
            "color": LINES[number % len(LINES)],
            "linestyle": DASHES[number % len(DASHES)],
            "marker": MARKERS[number % len(MARKERS)],
        }
        # Zeros have no place on a logarithmic axis; they are left out rather than drawn as something small.
        axes.plot(
            distance,
            np.where(relative > 0, relative, np.nan),
            linewidth=2,
            markersize=4,
            markevery=max(1, len(distance) // 24),
            label=name,
            **style,
        )
    axes.set_yscale("log")
    axes.set_title(title, fontsize=13)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("distance back (tokens)", fontsize=12)
    axes.set_ylabel("gradient of the loss, relative to distance 0", fontsize=12)
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if len(curves) > 1:
        axes.legend(frameon=False, fontsize=12)
    save(figure, path)
    return figure


def _beside(points: Float[np.ndarray, "n 2"], names: Sequence[str]) -> list[tuple[float, float]]:
    """Where each label goes, in typographic points from its token: the side with the most room, one label after the other."""
    unit = max(float(np.ptp(points, axis=0).max()), 1e-12) / 430  # the picture is about 430 typographic points high
    places, sizes = points / unit, np.full((len(points), 2), 4.0)
    offsets = []
    for index, name in enumerate(names):
        half = 3.7 * len(name)
        sides = [
            (5 + half, 6.0),
            (5 + half, -6.0),
            (-5 - half, 6.0),
            (-5 - half, -6.0),
            (0.0, 12.0),
            (0.0, -12.0),
            (8 + half, 0.0),
            (-8 - half, 0.0),
        ]
        others, their = np.delete(places, index, axis=0), np.delete(sizes, index, axis=0)
        # Two boxes are apart where, along x or along y, their centres differ by more than their half sizes together.
        apart = [
            (np.abs(others - places[index] - side) / (their + np.array([half, 7.0]))).max(axis=1).min(initial=1.3)
            for side in sides
        ]
        best = sides[int(np.argmax(apart))]
        offsets.append(best)
        places, sizes = np.vstack([places, places[index] + best]), np.vstack([sizes, [half, 7.0]])
    return offsets
