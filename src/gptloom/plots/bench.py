"""The picture of `gptloom bench`: a panel per sweep, with the measurements and the limit, on logarithmic axes."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from gptloom.plots.canvas import new_figure, save
from gptloom.plots.core import BLUE, ORANGE
from gptloom.plots.studies import INK, SKY

Panel = tuple[str, Callable[[Axes], None]]


def draw_bench(path: Path, found: Mapping[str, Any], *, title: str, dark: bool = False) -> Figure:
    """Draw every sweep that has points. Written as PNG.

    Args:
        path: the file to write.
        found: the result of `bench`.
        title: title of the picture.
        dark: draw for a dark page.
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
        drawn.append(("tokens/s against context", _sampling(points, blue)))
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


def _sampling(points: Sequence[Mapping[str, Any]], blue: str) -> Callable[[Axes], None]:
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
    """Make both axes logarithmic, with ticks at the measured values."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(values, [_short_label(value) for value in values])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _short_label(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.margins(y=0.15)


def _short_label(value: float | int) -> str:
    """Format a number for an axis: 512, 16k, 2M."""
    for least, size, letter in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if value >= least:
            return f"{value / size:.3g}{letter}"
    return f"{value:.4g}"
