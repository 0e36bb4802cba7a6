"""The picture of a model's statistics on a text, in up to four panels."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gptloom.plots.canvas import COLORS, LINES, new_figure, save, write_cells

BLUE, ORANGE, GREEN = LINES[:3]


def draw_statistics(
    path: Path,
    *,
    stream: Sequence[float],
    branches: Mapping[str, float],
    hidden: Sequence[tuple[str, float, float]],
    entropy: Sequence[Sequence[float]],
    uniform: float,
    parameters: Sequence[tuple[str, float, float]],
    title: str,
) -> Figure:
    """Draw sizes of activations and gradients; panels without data are omitted. Written as PNG.

    Args:
        path: the file to write.
        stream: root mean square of the embeddings and of the residual stream after each block.
        branches: root mean square of the output of each mixer and MLP, by name.
        hidden: for each MLP, its name, the share of activations that are off, and the share of dead units.
        entropy: for each layer, the mean entropy of each head in nats.
        uniform: entropy of a head that looks at all tokens equally, in nats.
        parameters: for each tensor, its name, its root mean square and that of its gradient.
        title: title of the picture.
    """
    panels: list[tuple[bool, Callable[[Axes], None]]] = [
        (bool(stream), lambda axes: _sizes(axes, stream, branches)),
        (bool(entropy), lambda axes: _entropy(axes, entropy, uniform)),
        (bool(hidden), lambda axes: _units(axes, hidden)),
    ]
    drawn = [draw for has_data, draw in panels if has_data]
    figure = new_figure(15, max(3.2 * len(drawn), 0.24 * len(parameters) + 2.0))
    columns = figure.add_gridspec(1, 2, width_ratios=(1, 1.25))
    rows = columns[0].subgridspec(max(1, len(drawn)), 1)
    for number, draw in enumerate(drawn):
        draw(figure.add_subplot(rows[number]))
    _gradients(figure.add_subplot(columns[1] if drawn else columns[:]), parameters)
    figure.suptitle(title, fontsize=14)
    save(figure, path)
    return figure


def _sizes(axes: Axes, stream: Sequence[float], branches: Mapping[str, float]) -> None:
    axes.plot(range(len(stream)), stream, color=BLUE, marker="o", linewidth=2, label="residual stream")
    for ending, color, marker in (("mixer", ORANGE, "s"), ("mlp", GREEN, "^")):
        sizes = [(_block(name) + 1, size) for name, size in branches.items() if name.endswith(ending)]
        if sizes:
            axes.plot(
                *zip(*sizes, strict=True), color=color, marker=marker, linestyle="--", label=f"what the {ending} gives"
            )
    axes.set_xticks(range(len(stream)), ["embedding", *(f"layer {block}" for block in range(len(stream) - 1))])
    axes.set_ylim(bottom=0)
    axes.set_ylabel("root mean square")
    axes.set_title("sizes along the stream", fontsize=12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)


def _entropy(axes: Axes, entropy: Sequence[Sequence[float]], uniform: float) -> None:
    heads = max(map(len, entropy))
    table = np.full((len(entropy), heads), np.nan)
    for layer, row in enumerate(entropy):
        table[layer, : len(row)] = row
    image = axes.imshow(np.ma.masked_invalid(table), cmap=COLORS, vmin=0.0, vmax=max(uniform, 1e-9), aspect="auto")
    cells = [
        (head, layer, value, f"{value:.2f}") for layer, row in enumerate(entropy) for head, value in enumerate(row)
    ]
    write_cells(axes, image, cells, size=10 if heads <= 12 else 7)
    axes.set_xticks(
        range(heads), [f"head {head}" for head in range(heads)] if heads <= 6 else [str(head) for head in range(heads)]
    )
    axes.set_yticks(range(len(entropy)), [f"layer {layer}" for layer in range(len(entropy))])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(f"entropy of the heads, in nats (uniform: {uniform:.2f})", fontsize=12)


def _units(axes: Axes, hidden: Sequence[tuple[str, float, float]]) -> None:
    names, off, dead = zip(*hidden, strict=True)
    places = np.arange(len(names))
    for shift, shares, color, label in (
        (-0.2, off, BLUE, "activations that are off"),
        (0.2, dead, ORANGE, "units off at every token"),
    ):
        bars = axes.bar(places + shift, shares, 0.4, color=color, label=label)
        axes.bar_label(bars, [f"{share:.0%}" for share in shares], fontsize=9, padding=2)
    axes.set_xticks(places, [f"layer {_block(name)}" for name in names])
    axes.set_ylim(0, 1.3)
    axes.set_yticks([0, 0.5, 1], ["0 %", "50 %", "100 %"])
    axes.set_title("hidden units of the MLPs", fontsize=12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=2, loc="upper center")


def _gradients(axes: Axes, parameters: Sequence[tuple[str, float, float]]) -> None:
    places = np.arange(len(parameters))
    for index, color, marker, label in ((1, BLUE, "o", "weight"), (2, ORANGE, "D", "gradient")):
        sizes = np.array([parameter[index] for parameter in parameters])
        axes.plot(np.where(sizes > 0, sizes, np.nan), places, color=color, marker=marker, linestyle="none", label=label)
    for place, (_, weight, gradient) in enumerate(parameters):
        if weight > 0 and gradient > 0:
            axes.plot([weight, gradient], [place, place], color="#B0B0B0", linewidth=1, zorder=0)
    ratios = [f"{gradient / weight:.2g}" if weight > 0 else "-" for _, weight, gradient in parameters]
    axes.set_xscale("log")
    axes.set_yticks(places, [name for name, _, _ in parameters], fontsize=9, family="monospace")
    axes.set_ylim(len(parameters) - 0.4, -0.6)
    axes.set_xlabel("root mean square")
    right = axes.secondary_yaxis("right")
    right.set_yticks(places, ratios, fontsize=9)
    right.tick_params(length=0)
    axes.text(1.0, 1.0, "gradient / weight", transform=axes.transAxes, fontsize=9, ha="center", va="bottom")
    axes.set_title("parameters and their gradients", fontsize=12)
    axes.grid(axis="y", alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)
    right.spines[:].set_visible(False)
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.06), ncols=2)


def _block(name: str) -> int:
    """Return the number in a module's name, such as 3 in blocks.3.mlp."""
    return next((int(part) for part in name.split(".") if part.isdigit()), 0)
