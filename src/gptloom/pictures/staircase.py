"""The picture of a ladder: what each step costs, and from which step it came."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gptloom.plots import BLUE, GREY, ORANGE

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
    """A row for each step from top to bottom, its loss to the right; an elbow leads to it from its base. Written as PNG.

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
            axes.plot([before, before, stair.loss], [rows[stair.base], row, row], color=colour, linewidth=1.2, alpha=0.55, zorder=1)
        mark = "s" if stair.counts else "^" if worse else "o"
        axes.errorbar(stair.loss, row, xerr=stair.spread, color=colour, marker=mark, markersize=6, capsize=3, zorder=3)
        if stair.published is not None:
            axes.plot(stair.published, row, marker="D", markersize=8, markerfacecolor="none", markeredgecolor=ink, linestyle="none", zorder=4)
        axes.text(1.01, row, f"{stair.loss:.3f}", color=ink, fontsize=9, va="center", ha="left", transform=axes.get_yaxis_transform())
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
    marks += [("trained, worse", "^", ORANGE, ORANGE, any(not s.counts and s.base in losses and s.loss > losses[s.base] for s in stairs))]
    marks += [("published", "D", "none", ink, any(stair.published is not None for stair in stairs))]
    handles = [Line2D([], [], marker=mark, color=edge, markerfacecolor=face, linestyle="none", label=text) for text, mark, face, edge, there in marks if there]
    figure.legend(handles=handles, frameon=False, labelcolor=ink, loc="outside lower center", ncols=4, fontsize=9)
