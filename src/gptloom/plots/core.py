"""Tokens with visible spaces, the steps of surprise that colour them, the picture of the losses, and HTML pages.

Colours are Okabe and Ito's, which colour-blind readers can distinguish. An HTML page is one file that works offline,
in light and dark themes, and loads nothing.
"""

import bisect
import math
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

SHOWN = {" ": "␣", "\n": "⏎", "\t": "⇥"}

STEPS = (0.5, 0.25, 0.1, 0.03, 0.01, 0.001)
"""Probabilities at which a token's colour changes; a token below the last of them has the strongest colour."""

STEP_NAMES = ("p ≥ 50 %", "≥ 25 %", "≥ 10 %", "≥ 3 %", "≥ 1 %", "≥ 0.1 %", "less")


@dataclass(frozen=True)
class TokenView:
    """A token of a text with its loss.

    Attributes:
        text: text of the token.
        loss: -ln p in nats; None for a token that was given and not predicted.
        rank: number of tokens with a higher probability; None if there is no loss.
        alternatives: the most likely tokens with their probabilities, highest first.
    """

    text: str
    loss: float | None = None
    rank: int | None = None
    alternatives: tuple[tuple[str, float], ...] = ()

    @property
    def probability(self) -> float | None:
        """exp(-loss); None if there is no loss."""
        return None if self.loss is None else math.exp(-self.loss)

    @property
    def step(self) -> int | None:
        """The step of surprise, from 0 (expected) to len(STEPS) (not expected); None if there is no loss."""
        return None if self.loss is None else bisect.bisect_right([-math.log(step) for step in STEPS], self.loss - 1e-9)


def visible(text: str) -> str:
    r"""Make every character visible: ␣ for a space, ⏎ for a line end, ⇥ for a tab, `\x1b` for a control character."""
    return "".join(SHOWN.get(char) or _spelled(char) for char in text)


def kind(text: str) -> str:
    """Return the kind of a token, as the legend of the token map names it."""
    inner = text.strip()
    if not inner:
        return "space, line end"
    first = inner[0]
    if first.isdigit():
        return "digit"
    if not first.isalpha():
        return "sign"
    if len(inner) == 1 and unicodedata.normalize("NFKD", first)[0] in "aeiou":
        return "vowel"
    if first.isupper():
        return "capital"
    return "small letter" if len(inner) == 1 else "part of a word" if text[:1] == first else "start of a word"


def _spelled(char: str) -> str:
    category = unicodedata.category(char)
    if category[0] in "CZ":
        return char.encode("unicode_escape").decode("ascii")
    return f"◌{char}" if category[0] == "M" else char


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
    """Draw training and validation loss against steps. Written as PNG.

    Args:
        path: the file to write.
        train: (step, nats per token) of single batches; drawn in a light colour, because they are noisy.
        val: (step, nats per token) on the whole validation split.
        title: name of the run.
        uniform: loss of a uniform guess, ln(vocab_size), drawn as a reference line.
        best: (step, loss) of the best checkpoint, which is marked.
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


# Background and text colour of each step of surprise, from expected to not expected, for light and dark pages. The
# ramps go from yellow to brown and change mainly in lightness, so that they can be read without colour vision.
LIGHT = (
    ("#fffbe8", "#1a1a1a"),
    ("#fff0bd", "#1a1a1a"),
    ("#fedc86", "#1a1a1a"),
    ("#fdb953", "#1a1a1a"),
    ("#ee8a26", "#1a1a1a"),
    ("#b95208", "#ffffff"),
    ("#6e2b06", "#ffffff"),
)
DARK = (
    ("#26241d", "#ededed"),
    ("#3d3418", "#ededed"),
    ("#5c4615", "#ededed"),
    ("#7d5510", "#ffffff"),
    ("#d08a2c", "#111111"),
    ("#f3b95c", "#111111"),
    ("#ffefc4", "#111111"),
)

_STYLE = """\
:root { color-scheme: light dark; --page: #ffffff; --ink: #1a1a1a; --soft: #5f5f5f; --line: #d8d8d8; LIGHT }
@media (prefers-color-scheme: dark) {
  :root { --page: #16161a; --ink: #ededed; --soft: #a6a6a6; --line: #3c3c42; DARK }
}
body { margin: 2rem auto; max-width: 62rem; padding: 0 1rem; background: var(--page); color: var(--ink);
  font: 1rem/1.6 system-ui, sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; }
p.soft, caption { color: var(--soft); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 0.15rem 0.75rem 0.15rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
td.number, th.number { text-align: right; }
code, .tokens { font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }"""

_TOKEN_STYLE = """\
.tokens { font-size: 1.15rem; line-height: 2; overflow-wrap: anywhere; }
.tokens span, .legend span { padding: 0.15em 0.1em; border-radius: 0.15em; }
.legend span { padding: 0.15em 0.5em; margin-right: 0.2em; }
.tokens span:hover { outline: 2px solid var(--ink); }
.given { border-bottom: 2px dotted var(--soft); }
.blank { opacity: 0.5; }"""


def html_page(title: str, body: str, *, style: str = "") -> str:
    """Return a complete HTML page.

    Args:
        title: plain text, used as title and heading.
        body: HTML; text in it must be escaped already.
        style: additional CSS.
    """
    sheet = _STYLE.replace("LIGHT", _variables(LIGHT)).replace("DARK", _variables(DARK))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{sheet}\n{style}\n</style>\n</head>\n"
        f"<body>\n<h1>{escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def tokens_page(tokens: Sequence[TokenView], *, title: str, summary: str, notes: Iterable[str] = ()) -> str:
    """Return a page of a text with each token coloured by its loss; a tooltip shows probability, rank, alternatives.

    Args:
        tokens: tokens in text order.
        title: plain text.
        summary: plain text, such as the mean loss.
        notes: plain text, one paragraph each.
    """
    legend = "".join(f'<span class="s{step}">{escape(name)}</span>' for step, name in enumerate(STEP_NAMES))
    body = [
        f"<p>{escape(summary)}</p>",
        *(f'<p class="soft">{escape(note)}</p>' for note in notes),
        f'<p class="legend">probability of each token: {legend}</p>',
        f'<p class="tokens">{"".join(map(_span, tokens))}</p>',
        '<p class="soft">Point at a token for its probability, its rank and the most likely tokens. '
        "Tokens with a dotted line were given, not predicted.</p>",
        "<details>\n<summary>The same as a table</summary>\n<table>",
        '<tr><th>token</th><th class="number">loss (nats)</th><th class="number">probability</th>'
        '<th class="number">rank</th><th>most likely</th></tr>',
        *map(_row, tokens),
        "</table>\n</details>",
    ]
    steps = "\n".join(
        f".s{step} {{ background: var(--b{step}); color: var(--f{step}); }}" for step in range(len(LIGHT))
    )
    return html_page(title, "\n".join(body), style=f"{_TOKEN_STYLE}\n{steps}")


def _span(token: TokenView) -> str:
    shown = (
        escape(visible(token.text))
        .replace("␣", '<i class="blank">␣</i><wbr>')
        .replace("⏎", '<i class="blank">⏎</i><br>')
    )
    style = "given" if token.step is None else f"s{token.step}"
    return f'<span class="{style}" title="{escape(_hover(token))}">{shown}</span>'


def _hover(token: TokenView) -> str:
    if token.loss is None or token.probability is None:
        return f"{visible(token.text)}  given, not predicted"
    likely = "\n".join(f"  {chance:6.1%}  {visible(text)}" for text, chance in token.alternatives)
    numbers = f"p {token.probability:.2%}, {token.loss:.3f} nats, rank {token.rank}"
    return f"{visible(token.text)}  {numbers}\nmost likely:\n{likely}"


def _row(token: TokenView) -> str:
    likely = "  ".join(f"<code>{escape(visible(text))}</code> {chance:.1%}" for text, chance in token.alternatives)
    loss, chance = ("", "") if token.loss is None else (f"{token.loss:.3f}", f"{token.probability:.2%}")
    rank = "" if token.rank is None else str(token.rank)
    numbers = "".join(f'<td class="number">{number}</td>' for number in (loss, chance, rank))
    return f"<tr><td><code>{escape(visible(token.text))}</code></td>{numbers}<td>{likely}</td></tr>"


def _variables(scale: Sequence[tuple[str, str]]) -> str:
    return " ".join(f"--b{step}: {back}; --f{step}: {letters};" for step, (back, letters) in enumerate(scale))
