"""Tokens as people see them: visible spaces and line ends, and steps of surprise that every surface colours alike."""

import bisect
import math
import unicodedata
from dataclasses import dataclass

SHOWN = {" ": "␣", "\n": "⏎", "\t": "⇥"}

STEPS = (0.5, 0.25, 0.1, 0.03, 0.01, 0.001)
"""Probabilities at which a token's colour changes; a token that got less than the last of them has the strongest."""

STEP_NAMES = ("p ≥ 50 %", "≥ 25 %", "≥ 10 %", "≥ 3 %", "≥ 1 %", "≥ 0.1 %", "less")


@dataclass(frozen=True)
class TokenView:
    """A token of a text and what a model thought of it.

    Attributes:
        text: the token, as it stands in the text.
        loss: -ln p in nats; None for a token that was given and not predicted.
        rank: how many tokens were held likelier; None where there is no loss.
        alternatives: the likeliest tokens with their probabilities, likeliest first.
    """

    text: str
    loss: float | None = None
    rank: int | None = None
    alternatives: tuple[tuple[str, float], ...] = ()

    @property
    def probability(self) -> float | None:
        """What the model gave this token."""
        return None if self.loss is None else math.exp(-self.loss)

    @property
    def step(self) -> int | None:
        """The step of surprise, 0 for a token that was expected, len(STEPS) for one that was not at all."""
        return None if self.loss is None else bisect.bisect_right([-math.log(step) for step in STEPS], self.loss - 1e-9)


def visible(text: str) -> str:
    r"""A token's text with every character to be seen: ␣ for a space, ⏎ for a line end, ⇥ for a tab, `\x1b` for what controls."""
    return "".join(SHOWN.get(char) or _spelled(char) for char in text)


def kind(text: str) -> str:
    """What sort of token it is, as a map's legend names it."""
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
