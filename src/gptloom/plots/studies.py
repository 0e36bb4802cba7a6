"""The picture of a ladder: what each step costs, and from which step it came.

Loss against time.

The picture of a comparison: every training, every pair, and what the pairs say together.

The picture of a bench: a panel a sweep, what was measured and the machine's limit, on logarithmic axes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

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


Panel = tuple[str, Callable[[Axes], None]]


def draw_bench(path: Path, found: Mapping[str, Any], *, title: str, dark: bool = False) -> Figure:
    """Every sweep that has points, as PNG.

    Args:
        path: where to write.
        found: as `bench` gives it.
        title: above the picture.
        dark: for a dark page.
    """
    back, ink, grid = INK["dark" if dark else "light"]
    blue = SKY if dark else BLUE
    panels = _panels(found, blue, ink)
    columns = min(4, max(1, len(panels)))
    rows = -(-len(panels) // columns) or 1
    figure = new_figure(4.2 * columns, 3.5 * rows + 0.6)
    figure.set_facecolor(back)
    for number, (name, draw) in enumerate(panels):
        axes = figure.add_subplot(rows, columns, number + 1, facecolor=back)
        draw(axes)
        axes.set_title(name, color=ink, fontsize=11)
        axes.tick_params(colors=ink, labelsize=9)
        axes.xaxis.label.set_color(ink)
        axes.grid(color=grid, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["bottom", "left"]].set_color(ink)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(frameon=False, fontsize=8, labelcolor=ink)
    figure.suptitle(title, fontsize=13, color=ink)
    save(figure, path)
    return figure


def _panels(found: Mapping[str, Any], blue: str, ink: str) -> list[Panel]:
    drawn: list[Panel] = []
    for one in found.get("sweeps", []):
        growth = "" if one["exponent"] is None else f", power {one['exponent']:.2f}"
        drawn.append((f"ms a step against {one['name']}{growth}", _sweep(one["points"], blue)))
    if points := found.get("sampling", {}).get("points"):
        drawn.append(("tokens/s against context", _writing(points, blue)))
    if points := found.get("preparing", {}).get("points"):
        drawn.append(("seconds to prepare, against MB of text", _preparing(points, blue)))
    if found.get("start"):
        drawn.append(("seconds to start", _start(found["start"], blue, ink)))
    return drawn


def _sweep(points: Sequence[Mapping[str, Any]], blue: str) -> Callable[[Axes], None]:
    def draw(axes: Axes) -> None:
        values, times = [one["value"] for one in points], [one["ms"] for one in points]
        spread = [
            [one["ms"] - one["ms_quartiles"][0] for one in points],
            [one["ms_quartiles"][1] - one["ms"] for one in points],
        ]
        axes.errorbar(
            values,
            times,
            yerr=spread,
            color=blue,
            marker="o",
            markersize=5,
            linewidth=2,
            capsize=3,
            label="a training step",
        )
        axes.plot(
            values,
            [one["limit_ms"] for one in points],
            color=ORANGE,
            linestyle="--",
            linewidth=1.6,
            label="its matrix products alone",
        )
        _logarithmic(axes, values)

    return draw


def _writing(points: Sequence[Mapping[str, Any]], blue: str) -> Callable[[Axes], None]:
    def draw(axes: Axes) -> None:
        for streams, marker in zip(sorted({one["streams"] for one in points}), "os", strict=False):
            here = [one for one in points if one["streams"] == streams]
            values = [one["value"] for one in here]
            axes.plot(
                values,
                [one["tokens_per_second"] for one in here],
                color=blue,
                marker=marker,
                linewidth=2,
                label=f"{streams} at once",
            )
            axes.plot(
                values,
                [one["limit_tokens_per_second"] for one in here],
                color=ORANGE,
                marker=marker,
                markersize=3,
                linestyle="--",
                linewidth=1.4,
            )
        axes.plot([], [], color=ORANGE, linestyle="--", label="reading their bytes alone")
        _logarithmic(axes, sorted({one["value"] for one in points}))

    return draw


def _preparing(points: Sequence[Mapping[str, Any]], blue: str) -> Callable[[Axes], None]:
    def draw(axes: Axes) -> None:
        sizes = [one["value"] / 1e6 for one in points]
        axes.plot(sizes, [one["seconds"] for one in points], color=blue, marker="o", linewidth=2, label="preparing")
        axes.plot(
            sizes,
            [one["limit"] for one in points],
            color=ORANGE,
            linestyle="--",
            linewidth=1.6,
            label="reading and hashing alone",
        )
        _logarithmic(axes, sizes)

    return draw


def _start(points: Sequence[Mapping[str, Any]], blue: str, ink: str) -> Callable[[Axes], None]:
    def draw(axes: Axes) -> None:
        bars = axes.barh([one["name"] for one in points], [one["seconds"] for one in points], color=blue)
        axes.bar_label(bars, [f" {one['seconds']:.3f}" for one in points], fontsize=9, color=ink)
        axes.axvline(points[0]["limit"], color=ORANGE, linestyle="--", linewidth=1.6, label="Python alone")
        axes.set_xscale("log")
        axes.invert_yaxis()
        axes.margins(x=0.25)

    return draw


def _logarithmic(axes: Axes, values: Sequence[float | int]) -> None:
    """Both axes; ticks at the values that were measured."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(values, [_short_label(value) for value in values])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _short_label(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.margins(y=0.15)


def _short_label(value: float | int) -> str:
    """A number on an axis: 512, 16k, 2M."""
    for least, size, letter in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if value >= least:
            return f"{value / size:.3g}{letter}"
    return f"{value:.4g}"
