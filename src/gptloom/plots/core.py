"""Pictures. Colours are Okabe and Ito's, which colour-blind readers can tell apart."""

from collections.abc import Sequence
from pathlib import Path

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#6E6E6E"


def draw_losses(
    path: Path,
    train: Sequence[tuple[int, float]],
    val: Sequence[tuple[int, float]],
    *,
    title: str,
    uniform: float,
    best: tuple[int, float] | None,
) -> None:
    """Training and validation loss against steps, as PNG.

    Args:
        path: where to write.
        train: (step, nats per token); shown lightly, for single batches are noisy.
        val: (step, nats per token) on the whole validation split.
        title: the run's name.
        uniform: the loss of a uniform guess, ln(vocab_size), as a reference line.
        best: (step, loss) of the best checkpoint, marked and named.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.axhline(uniform, color=GREY, linewidth=0.8, linestyle=":", label=f"uniform guess {uniform:.2f}")
    if train:
        axes.plot(*zip(*train, strict=True), color=BLUE, alpha=0.45, linewidth=1, label="training, single batches")
    if val:
        axes.plot(*zip(*val, strict=True), color=ORANGE, marker="o", markersize=3.5, label="validation, whole split")
    if best is not None:
        axes.annotate(
            f"best {best[1]:.4f}",
            best,
            xytext=(0, 14),
            textcoords="offset points",
            ha="right",
            color=ORANGE,
            arrowprops={"arrowstyle": "-", "color": ORANGE},
        )
    axes.set(title=title, xlabel="step", ylabel="loss (nats per token)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path)
