"""Pictures of `gptloom inspect`: attention maps, cross-attention, logit lens, token table, gradient by distance."""

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
"""Tokens that one large map shows, so that their labels can be read from the back of a lecture hall."""

WEIGHT = "attention weight (each row sums to 1)"

_NUMBERED = 24  # up to this many tokens on an axis, each cell has room for its number


def draw_attention(
    path: Path, weights: Sequence[Float[np.ndarray, "_ t t"]], tokens: Sequence[str], *, title: str
) -> Figure:
    """Draw the maps of all heads on one colour scale, one row per layer and one column per head. Written as PNG.

    Args:
        path: the file to write.
        weights: attention weights, an array (heads, t, t) per layer; rows are queries, columns are keys.
        tokens: texts of the t tokens.
        title: title of the picture.
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
    """Draw the map of one head, large. Written as PNG.

    Of a longer text, the map shows the last `LARGE` tokens, and the title says so.

    Args:
        path: the file to write.
        weights: attention weights; rows are queries, columns are keys; each row sums to 1.
        tokens: texts of the t tokens.
        title: title of the picture.
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
    """Draw the cross-attention from each token of the target to the tokens of the source. Written as PNG.

    Args:
        path: the file to write.
        weights: mean over heads and layers; rows are target tokens, columns are source tokens; each row sums to 1.
        source: texts of the s source tokens.
        target: texts of the t target tokens.
        title: title of the picture.
    """
    figure, axes = _large(weights, source, target, title)
    axes.set_ylabel("written", fontsize=12)
    axes.set_xlabel("read", fontsize=12)
    save(figure, path)
    return figure


def _large(
    weights: Float[np.ndarray, "t s"], columns: Sequence[str], rows: Sequence[str], title: str
) -> tuple[Figure, Axes]:
    """Draw a map with tokens on both axes, those of the columns on top; write the weights if there is room."""
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
        # Omit numbers that would read .00: the colour shows them, and the others are easier to see.
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
"""Width of the lens's columns in inches; the first tokens of a longer text are omitted."""

_NAMED = 150  # up to this many points, a map names all of them


def draw_lens(
    path: Path,
    guesses: Sequence[Sequence[tuple[str, float]]],
    tokens: Sequence[str],
    following: Sequence[str | None],
    names: Sequence[str],
    *,
    title: str,
) -> Figure:
    """Draw the logit lens: the most likely next token after each layer, the last layer on top. Written as PNG.

    Args:
        path: the file to write.
        guesses: for each layer and each token, the most likely next token and its probability.
        tokens: texts of the tokens that were read.
        following: the actual next token of each of them; None where the text ends.
        names: names of the layers.
        title: title of the picture.
    """
    texts = [*tokens, *(text for row in guesses for text, _ in row)]
    longest = max(len(drawable(text)) for text in texts)
    cell = max(0.5, 0.12 * longest + 0.08)
    shown = min(len(tokens), int(WIDE / cell))
    if shown < len(tokens):
        title += f"\nthe last {shown} of {len(tokens)} tokens"
    guesses, tokens, following = [row[-shown:] for row in guesses], tokens[-shown:], following[-shown:]
    figure = new_figure(max(6.0, cell * len(tokens) + 2.4), 0.52 * len(guesses) + 2.6)
    axes = figure.add_subplot()
    image = _draw_guesses(axes, guesses)
    _frame_right_guesses(axes, image, guesses, following)
    _label_lens(axes, tokens, following, names)
    figure.suptitle(title, fontsize=13)
    scale(figure, image, [axes], "probability of the guess")
    save(figure, path)
    return figure


def _draw_guesses(axes: Axes, guesses: Sequence[Sequence[tuple[str, float]]]) -> AxesImage:
    """Colour a cell for each layer and position by probability; write the token and the probability into it."""
    probabilities = np.array([[probability for _, probability in row] for row in guesses])
    image = axes.imshow(
        probabilities, cmap=COLORS, norm=weights_norm(), aspect="auto", interpolation="nearest", origin="lower"
    )
    cells = [
        (position, layer, float(probabilities[layer, position]), text)
        for layer, row in enumerate(guesses)
        for position, (text, _) in enumerate(row)
    ]
    texts = [(position, layer + 0.16, value, drawable(text)) for position, layer, value, text in cells]
    numbers = [(position, layer - 0.27, value, two_digits(value)) for position, layer, value, _ in cells]
    write_cells(axes, image, texts, size=12, tokens=True)
    write_cells(axes, image, numbers, size=8)
    return image


def _frame_right_guesses(
    axes: Axes, image: AxesImage, guesses: Sequence[Sequence[tuple[str, float]]], following: Sequence[str | None]
) -> None:
    """Draw a frame around each guess that equals the actual next token."""
    for layer, row in enumerate(guesses):
        for position, (text, probability) in enumerate(row):
            if text == following[position]:
                corner = (position - 0.46, layer - 0.46)
                color = ink(image, probability)
                axes.add_patch(Rectangle(corner, 0.92, 0.92, fill=False, edgecolor=color, linewidth=1.6))


def _label_lens(axes: Axes, tokens: Sequence[str], following: Sequence[str | None], names: Sequence[str]) -> None:
    """Name the layers at the left, the tokens that were read below, and the actual next tokens above."""
    label_tokens(axes, "x", tokens, size=12, turn=False)
    axes.set_yticks(range(len(names)), list(names))
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("read", fontsize=12)
    axes.spines[:].set_visible(False)
    above = axes.secondary_xaxis("top")
    above.set_xlabel("what really follows (framed where the guess is right)", fontsize=12)
    label_tokens(above, "x", [text if text is not None else "?" for text in following], size=12, turn=False)
    above.spines[:].set_visible(False)


def draw_embedding(
    path: Path,
    points: Float[np.ndarray, "v 2"],
    tokens: Sequence[str],
    shares: tuple[float, float],
    *,
    marked: Sequence[int],
    title: str,
) -> Figure:
    """Draw the token table, projected onto a plane. Written as PNG.

    Args:
        path: the file to write.
        points: coordinates of the tokens, see `trace.principal_axes`.
        tokens: texts of all v tokens.
        shares: share of the table's variance along each of the two axes.
        marked: ids to name if there are too many tokens to name all.
        title: title of the picture.
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
        for members, size, alpha in ((chosen[~is_named], 12, 0.35), (chosen[is_named], 32, 1.0)):
            axes.scatter(points[members, 0], points[members, 1], s=size, alpha=alpha, linewidths=0, **style)
        axes.scatter([], [], s=32, linewidths=0, label=f"{name} ({len(chosen)})", **style)
    names = [drawable(tokens[index]) for index in named]
    for index, name, offset in zip(named, names, _label_offsets(points[named], names), strict=True):
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
    """Draw how strongly a loss depends on earlier tokens: a curve per model, relative to distance 0. Written as PNG.

    Args:
        path: the file to write.
        curves: {name: (distances in tokens, gradient norms)} from distance 0, see `statistics.gradient_by_distance`.
        title: title of the picture.
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
        # A logarithmic axis cannot show zeros; omit them instead of drawing them as small numbers.
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


def _label_offsets(points: Float[np.ndarray, "n 2"], names: Sequence[str]) -> list[tuple[float, float]]:
    """Offset of each label from its token in typographic points: greedily the side with the most room."""
    unit = max(float(np.ptp(points, axis=0).max()), 1e-12) / 430  # the picture is about 430 typographic points high
    centers, sizes = points / unit, np.full((len(points), 2), 4.0)
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
        others, their_sizes = np.delete(centers, index, axis=0), np.delete(sizes, index, axis=0)
        # Two boxes do not overlap if their centres differ, in x or in y, by more than the sum of their half sizes.
        apart = [
            (np.abs(others - centers[index] - side) / (their_sizes + np.array([half, 7.0])))
            .max(axis=1)
            .min(initial=1.3)
            for side in sides
        ]
        best = sides[int(np.argmax(apart))]
        offsets.append(best)
        centers, sizes = np.vstack([centers, centers[index] + best]), np.vstack([sizes, [half, 7.0]])
    return offsets
