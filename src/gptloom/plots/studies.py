"""Pictures of studies: the staircase of a ladder, loss against time, and the paired losses of a comparison."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gptloom.plots.canvas import DASHES, LINES, MARKERS, new_figure, save
from gptloom.plots.core import BLUE, GREY, ORANGE

INK = {"light": ("#FFFFFF", "#1A1A1A", "#D9D9D9"), "dark": ("#16181C", "#ECECEC", "#3A3D44")}
"""Colours of background, text and grid, by theme."""

SKY = "#56B4E9"
"""Okabe and Ito's lighter blue, for dark backgrounds."""


@dataclass(frozen=True)
class Stair:
    """One step of the staircase.

    Attributes:
        name: label at the left.
        loss: in nats per token.
        spread: how far the bar extends below and above the loss, or None.
        base: name of the step that it starts from, or None.
        counts: True for a model that is counted, not trained.
        published: a published loss to mark, or None.
    """

    name: str
    loss: float
    spread: tuple[float, float] | None
    base: str | None
    counts: bool
    published: float | None = None


def draw_staircase(path: Path, stairs: Sequence[Stair], *, title: str, dark: bool = False) -> None:
    """Draw one row per step, top to bottom, with its loss; an elbow joins each step to its base. Written as PNG.

    Args:
        path: the file to write.
        stairs: the steps, in climbing order.
        title: title of the picture.
        dark: draw for a dark page.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    back, ink, grid = INK["dark" if dark else "light"]
    grey = "#9A9A9A" if dark else GREY
    blue = SKY if dark else BLUE
    figure = Figure(figsize=(9, 1.6 + 0.29 * len(stairs)), dpi=120, layout="constrained", facecolor=back)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(facecolor=back)
    rows = {stair.name: row for row, stair in enumerate(stairs)}
    losses = {stair.name: stair.loss for stair in stairs}
    for row, stair in enumerate(stairs):
        colour = grey if stair.counts else ORANGE if _is_worse(stair, losses) else blue
        if stair.base in rows:
            _draw_elbow(axes, (losses[stair.base], rows[stair.base]), (stair.loss, row), colour)
        _draw_step(axes, row, stair, colour, ink, worse=_is_worse(stair, losses))
    _style_staircase(axes, stairs, ink, grid)
    axes.set_title(title, color=ink)
    _legend(figure, stairs, (blue, grey, ink))
    figure.savefig(path)


def _is_worse(stair: Stair, losses: Mapping[str, float]) -> bool:
    """Whether a step's loss is above that of its base."""
    return stair.base is not None and stair.base in losses and stair.loss > losses[stair.base]


def _draw_elbow(axes: Axes, start: tuple[float, int], end: tuple[float, int], colour: str) -> None:
    """Draw a line down, then sideways, between two points (loss, row)."""
    axes.plot(
        [start[0], start[0], end[0]], [start[1], end[1], end[1]], color=colour, linewidth=1.2, alpha=0.55, zorder=1
    )


def _draw_step(axes: Axes, row: int, stair: Stair, colour: str, ink: str, *, worse: bool) -> None:
    """Mark the loss of a step, its spread and the published loss; write the loss at the right."""
    mark = "s" if stair.counts else "^" if worse else "o"
    around = None if stair.spread is None else [[part] for part in stair.spread]
    axes.errorbar(stair.loss, row, xerr=around, color=colour, marker=mark, markersize=6, capsize=3, zorder=3)
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


def _style_staircase(axes: Axes, stairs: Sequence[Stair], ink: str, grid: str) -> None:
    """Set the limits, the labels and the colours of the axes."""
    shown = [stair.loss for stair in stairs]
    shown += [stair.published for stair in stairs if stair.published is not None]
    width = max(shown) - min(shown) or 1.0
    axes.set_yticks(range(len(stairs)), [stair.name for stair in stairs])
    axes.set_ylim(len(stairs) - 0.4, -0.6)
    axes.set_xlim(min(shown) - 0.06 * width, max(shown) + 0.06 * width)
    axes.set_xlabel("validation loss (nats per token); further left is better", color=ink)
    axes.tick_params(colors=ink, labelsize=9)
    axes.grid(axis="x", color=grid, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(ink)


def _legend(figure: Figure, stairs: Sequence[Stair], colours: tuple[str, str, str]) -> None:
    """Explain the marks that occur."""
    from matplotlib.lines import Line2D

    blue, grey, ink = colours
    losses = {stair.name: stair.loss for stair in stairs}
    trained = [stair for stair in stairs if not stair.counts]
    worse = any(_is_worse(stair, losses) for stair in trained)
    published = any(stair.published is not None for stair in stairs)
    marks = [
        ("counted", "s", grey, grey, len(trained) < len(stairs)),
        ("trained, better than what it came from", "o", blue, blue, bool(trained)),
        ("trained, worse", "^", ORANGE, ORANGE, worse),
        ("published", "D", "none", ink, published),
    ]
    handles = [
        Line2D([], [], marker=mark, color=edge, markerfacecolor=face, linestyle="none", label=text)
        for text, mark, face, edge, occurs in marks
        if occurs
    ]
    figure.legend(handles=handles, frameon=False, labelcolor=ink, loc="outside lower center", ncols=4, fontsize=9)


def draw_races(path: Path, races: Mapping[str, Sequence[tuple[float, float]]], *, title: str) -> Figure:
    """Draw the validation loss of each model against seconds of training; the legend gives the last point. PNG.

    Args:
        path: the file to write.
        races: {name: (seconds, nats per token)}, the untrained model first.
        title: title of the picture.
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
    if later:  # the losses before training are far above the others and would compress the axis
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
    """Draw losses by arm at the left; at the right, differences from the baseline with 95 % intervals. Written as PNG.

    Args:
        path: the file to write.
        names: names of the arms, the baseline first.
        losses: for each arm, its losses by seed; None where the training diverged.
        differences: for each arm but the baseline, its loss minus the baseline's, by seed.
        intervals: for each arm but the baseline, (low, mean, high) or None.
        title: title of the picture.
        unit: unit of the loss.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    rows = len(names)
    figure = Figure(figsize=(11, 2.2 + 0.6 * rows), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=[1, 1])
    _draw_arm_losses(left, losses)
    left.set(
        title="each training; a line joins those of one seed or pair", xlabel=f"validation loss ({unit}); bar: mean"
    )
    _draw_differences(right, differences, intervals)
    right.set(
        title="difference from the first, with its 95 % interval",
        xlabel="← better      difference of the loss      worse →",
    )
    for axes in (left, right):
        axes.set_yticks(range(rows), [_wrapped(name) for name in names])
        axes.set_ylim(rows - 0.5, -0.5)
        axes.spines[["top", "right"]].set_visible(False)
    right.tick_params(labelleft=False)
    figure.suptitle(title)
    figure.savefig(path)


def _draw_arm_losses(axes: Axes, losses: Sequence[Sequence[float | None]]) -> None:
    """Draw a line for each seed through the losses of the arms, and a bar at the mean of each arm."""
    for seed in range(len(losses[0])):
        known = [(loss, row) for row, arm in enumerate(losses) if (loss := arm[seed]) is not None]
        axes.plot(
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
        known_losses = [loss for loss in arm if loss is not None]
        if known_losses:
            axes.plot(
                [sum(known_losses) / len(known_losses)],
                [row],
                color=ORANGE,
                marker="|",
                markersize=22,
                markeredgewidth=2.5,
                linestyle="none",
            )


def _draw_differences(
    axes: Axes,
    differences: Sequence[Sequence[float | None]],
    intervals: Sequence[tuple[float, float, float] | None],
) -> None:
    """Draw the differences of each arm by seed, and the interval of their mean."""
    axes.axvline(0.0, color=GREY, linewidth=0.8, linestyle=":")
    for row, (by_seed, interval) in enumerate(zip(differences, intervals, strict=True), start=1):
        known = [value for value in by_seed if value is not None]
        axes.plot(known, [row + 0.18] * len(known), color=BLUE, marker="o", markersize=4, mec="white", linestyle="none")
        if interval is not None:
            low, mean, high = interval
            axes.errorbar(
                [mean],
                [row],
                xerr=[[mean - low], [high - mean]],
                color=ORANGE,
                fmt="D",
                markersize=6,
                linewidth=2.2,
                capsize=5,
            )


def _wrapped(name: str) -> str:
    """Break a long name into lines of at most about 28 characters."""
    words, lines = name.split(" "), [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + len(word) > 28:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)
