"""What each layer would say, where the tokens lie, and how far back a loss reaches."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from gptloom.labels import kind
from gptloom.pictures.canvas import (
    COLORS,
    DASHES,
    LINES,
    MARKERS,
    drawable,
    ink,
    label_tokens,
    new_figure,
    save,
    scale,
    token_font,
    two_digits,
    weights_norm,
    write_cells,
)

WIDE = 14.0
"""Inches that the lens's columns may take; what a longer text has before that is left out."""

_NAMED = 150  # points of a map that can all be named


def draw_lens(
    path: Path, guesses: Sequence[Sequence[tuple[str, float]]], tokens: Sequence[str], following: Sequence[str | None], names: Sequence[str], *, title: str
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
    texts, guesses, tokens, following = [row[-shown:] for row in texts], [row[-shown:] for row in guesses], tokens[-shown:], following[-shown:]
    figure = new_figure(max(6.0, cell * len(tokens) + 2.4), 0.52 * len(guesses) + 2.6)
    axes = figure.add_subplot()
    chances = np.array([[chance for _, chance in row] for row in guesses])
    image = axes.imshow(chances, cmap=COLORS, norm=weights_norm(), aspect="auto", interpolation="nearest", origin="lower")
    places = [(layer, place) for layer in range(len(guesses)) for place in range(len(tokens))]
    write_cells(axes, image, [(place, layer + 0.16, chances[layer, place], texts[layer][place]) for layer, place in places], size=12, tokens=True)
    write_cells(axes, image, [(place, layer - 0.27, chances[layer, place], two_digits(chances[layer, place])) for layer, place in places], size=8)
    for layer, place in places:
        if guesses[layer][place][0] == following[place]:
            axes.add_patch(Rectangle((place - 0.46, layer - 0.46), 0.92, 0.92, fill=False, edgecolor=ink(image, chances[layer, place]), linewidth=1.6))
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
    path: Path, points: Float[np.ndarray, "v 2"], tokens: Sequence[str], shares: tuple[float, float], *, marked: Sequence[int], title: str
) -> Figure:
    """The token table in the plane as PNG.

    Args:
        path: where to write.
        points: the tokens' coordinates, see `probe.principal_axes`.
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
        text = axes.annotate(name, points[index].tolist(), xytext=offset, textcoords="offset points", ha="center", va="center")
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


def draw_gradient_by_distance(path: Path, curves: Mapping[str, tuple[Sequence[int], Sequence[float]]], *, title: str) -> Figure:
    """How strongly a loss depends on tokens further back, as PNG: a curve a model, each relative to its own distance 0.

    Args:
        path: where to write.
        curves: {name: (distances in tokens, gradient norms)} as `probe.gradient_by_distance` gives them, from distance 0 on.
        title: above the picture.
    """
    figure = new_figure(9, 5)
    axes = figure.add_subplot()
    for number, (name, (distance, size)) in enumerate(curves.items()):
        relative = np.asarray(size) / size[0] if size[0] else np.zeros(len(size))
        style: dict[str, Any] = {"color": LINES[number % len(LINES)], "linestyle": DASHES[number % len(DASHES)], "marker": MARKERS[number % len(MARKERS)]}
        # Zeros have no place on a logarithmic axis; they are left out rather than drawn as something small.
        axes.plot(distance, np.where(relative > 0, relative, np.nan), linewidth=2, markersize=4, markevery=max(1, len(distance) // 24), label=name, **style)
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
        sides = [(5 + half, 6.0), (5 + half, -6.0), (-5 - half, 6.0), (-5 - half, -6.0), (0.0, 12.0), (0.0, -12.0), (8 + half, 0.0), (-8 - half, 0.0)]
        others, their = np.delete(places, index, axis=0), np.delete(sizes, index, axis=0)
        # Two boxes are apart where, along x or along y, their centres differ by more than their half sizes together.
        apart = [(np.abs(others - places[index] - side) / (their + np.array([half, 7.0]))).max(axis=1).min(initial=1.3) for side in sides]
        best = sides[int(np.argmax(apart))]
        offsets.append(best)
        places, sizes = np.vstack([places, places[index] + best]), np.vstack([sizes, [half, 7.0]])
    return offsets
