"""Pictures of studies: the staircase of a ladder, loss against time, and the pairs of a comparison."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from gptloom.plots.canvas import DASHES, LINES, MARKERS, new_figure, save
from gptloom.plots.core import BLUE, GREY, ORANGE

INK = {"light": ("#FFFFFF", "#1A1A1A", "#D9D9D9"), "dark": ("#16181C", "#ECECEC", "#3A3D44")}
"""Background, text and grid."""

SKY = "#56B4E9"
"""Okabe and Ito's lighter blue, for a dark background."""


@dataclass(frozen=True)
class Stair:
    """One step in the picture.

    Attributes:
        name: written at the left.
        loss: in nats per token.
        spread: standard deviation over seeds, or None.
        base: name of the step that it came from, or None.
        counts: it only counts.
        published: a published loss to mark, or None.
    """

    name: str
    loss: float
    spread: float | None
    base: str | None
    counts: bool
    published: float | None = None


def draw_staircase(path: Path, stairs: Sequence[Stair], *, title: str, dark: bool = False) -> None:
    """A row for each step from top to bottom, its loss to the right; an elbow leads to it from its base.

    Written as PNG.

    Args:
        path: where to write.
        stairs: in climbing order.
        title: above the picture.
        dark: for a dark page.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    back, ink, grid = INK["dark" if dark else "light"]
    blue = SKY if dark else BLUE
    figure = Figure(figsize=(9, 1.6 + 0.29 * len(stairs)), dpi=120, layout="constrained", facecolor=back)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(facecolor=back)
    rows = {stair.name: row for row, stair in enumerate(stairs)}
    losses = {stair.name: stair.loss for stair in stairs}
    shown = [*losses.values(), *(stair.published for stair in stairs if stair.published is not None)]
    width = max(shown) - min(shown) or 1.0
    for row, stair in enumerate(stairs):
        worse = stair.base in losses and stair.loss > losses[stair.base]
        colour = ("#9A9A9A" if dark else GREY) if stair.counts else ORANGE if worse else blue
        if stair.base in rows:
            before = losses[stair.base]
            axes.plot(
                [before, before, stair.loss],
                [rows[stair.base], row, row],
                color=colour,
                linewidth=1.2,
                alpha=0.55,
                zorder=1,
            )
        mark = "s" if stair.counts else "^" if worse else "o"
        axes.errorbar(stair.loss, row, xerr=stair.spread, color=colour, marker=mark, markersize=6, capsize=3, zorder=3)
        if stair.published is not None:
            axes.plot(
                stair.published,
                row,
                marker="D",
                markersize=8,
                markerfacecolor="none",
                markeredgecolor=ink,
                linestyle="none",
                zorder=4,
            )
        axes.text(
            1.01,
            row,
            f"{stair.loss:.3f}",
            color=ink,
            fontsize=9,
            va="center",
            ha="left",
            transform=axes.get_yaxis_transform(),
        )
    axes.set_yticks(range(len(stairs)), [stair.name for stair in stairs])
    axes.set_ylim(len(stairs) - 0.4, -0.6)
    axes.set_xlim(min(shown) - 0.06 * width, max(shown) + 0.06 * width)
    axes.set_xlabel("validation loss (nats per token); further left is better", color=ink)
    axes.set_title(title, color=ink)
    axes.tick_params(colors=ink, labelsize=9)
    axes.grid(axis="x", color=grid, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(ink)
    _legend(figure, stairs, (blue, "#9A9A9A" if dark else GREY, ink))
    figure.savefig(path)


def _legend(figure: object, stairs: Sequence[Stair], colours: tuple[str, str, str]) -> None:
    """Says what the marks mean, of those that occur."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    assert isinstance(figure, Figure)
    blue, grey, ink = colours
    losses = {stair.name: stair.loss for stair in stairs}
    marks = [("counted", "s", grey, grey, any(stair.counts for stair in stairs))]
    marks += [("trained, better than what it came from", "o", blue, blue, any(not stair.counts for stair in stairs))]
    marks += [
        (
            "trained, worse",
            "^",
            ORANGE,
            ORANGE,
            any(not s.counts and s.base in losses and s.loss > losses[s.base] for s in stairs),
        )
    ]
    marks += [("published", "D", "none", ink, any(stair.published is not None for stair in stairs))]
    handles = [
        Line2D([], [], marker=mark, color=edge, markerfacecolor=face, linestyle="none", label=text)
        for text, mark, face, edge, there in marks
        if there
    ]
    figure.legend(handles=handles, frameon=False, labelcolor=ink, loc="outside lower center", ncols=4, fontsize=9)


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
        style: dict[str, Any] = {
            "color": LINES[number % len(LINES)],
            "linestyle": DASHES[number % len(DASHES)],
            "marker": MARKERS[number % len(MARKERS)],
        }
        seconds, losses = zip(*points, strict=True)
        axes.plot(
            seconds,
            losses,
            linewidth=2,
            markersize=5,
            label=f"{name}: {losses[-1]:.3f} after {seconds[-1]:.0f} s",
            **style,
        )
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


def draw_comparison(
    path: Path,
    names: Sequence[str],
    losses: Sequence[Sequence[float | None]],
    differences: Sequence[Sequence[float | None]],
    intervals: Sequence[tuple[float, float, float] | None],
    *,
    title: str,
    unit: str,
) -> None:
    """Losses by arm with a line for each pair; beside them the differences from the baseline with their 95 % intervals, as PNG.

    Args:
        path: where to write.
        names: of the arms, the baseline first.
        losses: for each arm its loss by seed; None where the training diverged.
        differences: for each arm but the baseline, its loss minus the baseline's, by seed.
        intervals: for each arm but the baseline (low, mean, high), or None.
        title: what was compared.
        unit: of the loss.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = len(names)
    figure = Figure(figsize=(11, 2.2 + 0.6 * rows), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=[1, 1])
    for seed in range(len(losses[0])):
        known = [(arm[seed], row) for row, arm in enumerate(losses) if arm[seed] is not None]
        left.plot(
            [loss for loss, _ in known],
            [row for _, row in known],
            color=GREY,
            linewidth=0.8,
            alpha=0.6,
            marker="o",
            markersize=5,
            mfc=BLUE,
            mec="white",
        )
    for row, arm in enumerate(losses):
        there = [loss for loss in arm if loss is not None]
        if there:
            left.plot(
                [sum(there) / len(there)],
                [row],
                color=ORANGE,
                marker="|",
                markersize=22,
                markeredgewidth=2.5,
                linestyle="none",
            )
    left.set(
        title="each training; a line joins those of one seed or pair", xlabel=f"validation loss ({unit}); bar: mean"
    )
    right.axvline(0.0, color=GREY, linewidth=0.8, linestyle=":")
    for row, (one, interval) in enumerate(zip(differences, intervals, strict=True), start=1):
        there = [value for value in one if value is not None]
        right.plot(
            there, [row + 0.18] * len(there), color=BLUE, marker="o", markersize=4, mec="white", linestyle="none"
        )
        if interval is not None:
            low, mean, high = interval
            right.errorbar(
                [mean],
                [row],
                xerr=[[mean - low], [high - mean]],
                color=ORANGE,
                fmt="D",
                markersize=6,
                linewidth=2.2,
                capsize=5,
            )
    right.set(
        title="difference from the first, with its 95 % interval",
        xlabel="← better      difference of the loss      worse →",
    )
    for axes in (left, right):
        axes.set_yticks(range(rows), [_short(name) for name in names])
        axes.set_ylim(rows - 0.5, -0.5)
        axes.spines[["top", "right"]].set_visible(False)
    right.tick_params(labelleft=False)
    figure.suptitle(title)
    figure.savefig(path)


def _short(name: str) -> str:
    """A long name on several lines."""
    words, lines = name.split(" "), [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + len(word) > 28:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)
