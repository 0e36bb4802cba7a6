"""The picture of a comparison: every training, every pair, and what the pairs say together."""

from collections.abc import Sequence
from pathlib import Path

from gptloom.plots import BLUE, GREY, ORANGE


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
        left.plot([loss for loss, _ in known], [row for _, row in known], color=GREY, linewidth=0.8, alpha=0.6, marker="o", markersize=5, mfc=BLUE, mec="white")
    for row, arm in enumerate(losses):
        there = [loss for loss in arm if loss is not None]
        if there:
            left.plot([sum(there) / len(there)], [row], color=ORANGE, marker="|", markersize=22, markeredgewidth=2.5, linestyle="none")
    left.set(title="each training; a line joins those of one seed or pair", xlabel=f"validation loss ({unit}); bar: mean")
    right.axvline(0.0, color=GREY, linewidth=0.8, linestyle=":")
    for row, (one, interval) in enumerate(zip(differences, intervals, strict=True), start=1):
        there = [value for value in one if value is not None]
        right.plot(there, [row + 0.18] * len(there), color=BLUE, marker="o", markersize=4, mec="white", linestyle="none")
        if interval is not None:
            low, mean, high = interval
            right.errorbar([mean], [row], xerr=[[mean - low], [high - mean]], color=ORANGE, fmt="D", markersize=6, linewidth=2.2, capsize=5)
    right.set(title="difference from the first, with its 95 % interval", xlabel="← better      difference of the loss      worse →")
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
