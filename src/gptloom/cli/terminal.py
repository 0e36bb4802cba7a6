"""Tokens on the terminal: the text with each token coloured by its loss, and a table of the losses.

`gptloom inspect` prints them. The page tokens.html uses the same steps of surprise, see `plots.core`.
"""

import os
import sys
from collections.abc import Iterator, Sequence

from rich.cells import cell_len, set_cell_size

from gptloom.plots.core import STEP_NAMES, TokenView, visible

RAMP = ((230, 16), (229, 16), (222, 16), (215, 16), (208, 16), (130, 231), (52, 231))
"""Background and text colour of each step of surprise in the 256-colour palette, from light to dark.

Both are always set, so that light and dark terminals show the same colours."""

MOST_ROWS = 64
"""Limit of the tokens in the table; the files contain all of them."""

_WIDTH = 14


def wants_color() -> bool:
    """Whether to colour standard output: only on a terminal, and not if NO_COLOR is set (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def colored(tokens: Sequence[TokenView]) -> str:
    """Return the text, coloured by each token's step of surprise, and a legend below it."""
    text = "".join(_paint(visible(token.text), token.step) + "\n" * token.text.count("\n") for token in tokens)
    legend = "".join(_paint(f" {name} ", step) for step, name in enumerate(STEP_NAMES))
    return f"{text}\n\nprobability: {legend}"


def table(tokens: Sequence[TokenView]) -> Iterator[str]:
    """Yield a line for each of the first `MOST_ROWS` tokens: its loss, probability, rank and alternatives."""
    yield f"{'token':<{_WIDTH}} {'loss':>7} {'p':>7} {'rank':>5}   most likely"
    for token in tokens[:MOST_ROWS]:
        name = _fit(visible(token.text))
        if token.loss is None or token.probability is None:
            yield f"{name} {'given':>7}"
            continue
        likely = "  ".join(f"{visible(text)} {chance:.3f}" for text, chance in token.alternatives)
        yield f"{name} {token.loss:7.3f} {token.probability:7.4f} {token.rank:5d}   {likely}"
    if len(tokens) > MOST_ROWS:
        yield f"... and {len(tokens) - MOST_ROWS:,} more"


def _fit(name: str) -> str:
    return set_cell_size(name, _WIDTH) if cell_len(name) <= _WIDTH else set_cell_size(name, _WIDTH - 1) + "…"


def _paint(text: str, step: int | None) -> str:
    if step is None:
        return text
    background, letters = RAMP[step]
    return f"\x1b[48;5;{background};38;5;{letters}m{text}\x1b[0m"
