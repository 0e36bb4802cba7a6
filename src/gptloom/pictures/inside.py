"""What each layer would say, where the tokens lie, and how far back a loss reaches."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from gptloom.labels import kind
from gptloom.pictures.canvas import COLORS, DASHES, LINES, MARKERS, drawable, label_tokens, new_figure, save, scale, token_font, weights_norm, write_cells

WIDE = 24
"""Tokens whose predictions fit beside each other."""

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
    if len(tokens) > WIDE:
        title += f"\nthe last {WIDE} of {len(tokens)} tokens"
        guesses, tokens, following = [row[-WIDE:] for row in guesses], tokens[-WIDE:], following[-WIDE:]
    texts = [[drawable(text) for text, _ in row] for row in guesses]
    longest = max(len(text) for row in texts for text in row)
    cell = max(0.5, 0.13 * longest + 0.1)
    figure = new_figure(max(6.0, cell * len(tokens) + 2.4), 0.52 * len(guesses) + 2.6)
    axes = figure.add_subplot()
    chances = np.array([[chance for _, chance in row] for row in guesses])
    image = axes.imshow(chances, cmap=COLORS, norm=weights_norm(), aspect="auto", interpolation="nearest", origin="lower")
    places = [(layer, place) for layer in range(len(guesses)) for place in range(len(tokens))]
    write_cells(axes, image, [(place, layer + 0.16, chances[layer, place], texts[layer][place]) for layer, place in places], size=12, tokens=True)
    write_cells(axes, image, [(place, layer - 0.27, chances[layer, place], f"{chances[layer, place]:.2f}"[1:]) for layer, place in places], size=8)
    for layer, place in places:
        if guesses[layer][place][0] == following[place]:
            axes.add_patch(Rectangle((place - 0.46, layer - 0.46), 0.92, 0.92, fill=False, edgecolor="white", linewidth=1.8))
    label_tokens(axes, "x", tokens, size=12)
    axes.set_yticks(range(len(names)), list(names))
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("read", fontsize=12)
    axes.spines[:].set_visible(False)
    above = axes.secondary_xaxis("top")
    above.set_xlabel("what really follows (framed where the guess is right)", fontsize=12)
    label_tokens(above, "x", [text if text is not None else "?" for text in following], size=12)
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
    for number, name in enumerate(sorted(set(kinds), key=lambda one: (-kinds.count(one), one))):
        chosen = [index for index, one in enumerate(kinds) if one == name]
        style: dict[str, Any] = {"color": LINES[number % len(LINES)], "marker": MARKERS[number % len(MARKERS)], "linewidths": 0}
        axes.scatter(points[chosen, 0], points[chosen, 1], s=26, alpha=0.85 if len(tokens) <= _NAMED else 0.35, label=f"{name} ({len(chosen)})", **style)
    for index in named:
        axes.annotate(drawable(tokens[index]), points[index].tolist(), xytext=(4, 4), textcoords="offset points", fontproperties=token_font(12))
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
    axes.set_xlabel("distance back (tokens)", fontsize=12)
    axes.set_ylabel("gradient of the loss, relative to distance 0", fontsize=12)
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if len(curves) > 1:
        axes.legend(frameon=False, fontsize=12)
    save(figure, path)
    return figure
