"""Loss against time."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from gptloom.pictures.canvas import DASHES, LINES, MARKERS, new_figure, save


def draw_races(path: Path, races: Mapping[str, Sequence[tuple[float, float]]], *, title: str) -> Figure:
    """Validation loss against seconds of training, as PNG: a curve a model, its end named.

    Args:
        path: where to write.
        races: {name: (seconds, nats per token)}, the untrained model first.
        title: above the picture.
    """
    figure = new_figure(9, 5)
    axes = figure.add_subplot()
    for number, (name, points) in enumerate(races.items()):
        style: dict[str, Any] = {"color": LINES[number % len(LINES)], "linestyle": DASHES[number % len(DASHES)], "marker": MARKERS[number % len(MARKERS)]}
        seconds, losses = zip(*points, strict=True)
        axes.plot(seconds, losses, linewidth=2, markersize=5, label=f"{name}: {losses[-1]:.3f} after {seconds[-1]:.0f} s", **style)
    later = [loss for points in races.values() for _, loss in points[1:]]
    if later:  # the first losses are far above all others and would squeeze them
        margin = 0.05 * (max(later) - min(later)) or 0.1
        axes.set_ylim(min(later) - margin, max(later) + margin)
    axes.set_title(title, fontsize=13)
    axes.set_xlabel("seconds of training", fontsize=12)
    axes.set_ylabel("validation loss (nats per token)", fontsize=12)
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=12)
    save(figure, path)
    return figure
