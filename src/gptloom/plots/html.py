"""HTML pages: one file each, which works offline, in light and dark, and fetches nothing."""

from collections.abc import Iterable, Sequence
from html import escape

from gptloom.plots.core import STEP_NAMES, TokenView, visible

# Background and letters of each step of surprise, from expected to not at all, for a light and for a dark page. Both
# run in lightness alone, yellow to brown, away from the page's own colour, so that they are read alike without colour
# vision.
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
@media (prefers-color-scheme: dark) { :root { --page: #16161a; --ink: #ededed; --soft: #a6a6a6; --line: #3c3c42; DARK } }
body { margin: 2rem auto; max-width: 62rem; padding: 0 1rem; background: var(--page); color: var(--ink); font: 1rem/1.6 system-ui, sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; }
p.soft, caption { color: var(--soft); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 0.15rem 0.75rem 0.15rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
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
    """A whole page.

    Args:
        title: plain text, the page's title and its heading.
        body: HTML; whatever was text in it has been escaped.
        style: more CSS.
    """
    sheet = _STYLE.replace("LIGHT", _variables(LIGHT)).replace("DARK", _variables(DARK))
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{sheet}\n{style}\n</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def tokens_page(tokens: Sequence[TokenView], *, title: str, summary: str, notes: Iterable[str] = ()) -> str:
    """A text with each token coloured by how surprising it was; pointing at one tells its probability, rank and rivals.

    Args:
        tokens: in the text's order.
        title: plain text.
        summary: plain text: the mean loss, and what else is worth saying.
        notes: plain text, a paragraph each.
    """
    legend = "".join(f'<span class="s{step}">{escape(name)}</span>' for step, name in enumerate(STEP_NAMES))
    body = [
        f"<p>{escape(summary)}</p>",
        *(f'<p class="soft">{escape(note)}</p>' for note in notes),
        f'<p class="legend">what the model gave each token: {legend}</p>',
        f'<p class="tokens">{"".join(map(_span, tokens))}</p>',
        '<p class="soft">Point at a token for its probability, its rank and what was likelier; the dotted ones were given, not predicted.</p>',
        "<details>\n<summary>The same as a table</summary>\n<table>",
        '<tr><th>token</th><th class="number">loss (nats)</th><th class="number">probability</th><th class="number">rank</th><th>likeliest</th></tr>',
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
    likeliest = "\n".join(f"  {chance:6.1%}  {visible(text)}" for text, chance in token.alternatives)
    return f"{visible(token.text)}  p {token.probability:.2%}, {token.loss:.3f} nats, rank {token.rank}\nlikeliest:\n{likeliest}"


def _row(token: TokenView) -> str:
    likeliest = "  ".join(f"<code>{escape(visible(text))}</code> {chance:.1%}" for text, chance in token.alternatives)
    loss, chance = ("", "") if token.loss is None else (f"{token.loss:.3f}", f"{token.probability:.2%}")
    rank = "" if token.rank is None else str(token.rank)
    numbers = "".join(f'<td class="number">{number}</td>' for number in (loss, chance, rank))
    return f"<tr><td><code>{escape(visible(token.text))}</code></td>{numbers}<td>{likeliest}</td></tr>"


def _variables(scale: Sequence[tuple[str, str]]) -> str:
    return " ".join(f"--b{step}: {back}; --f{step}: {letters};" for step, (back, letters) in enumerate(scale))
