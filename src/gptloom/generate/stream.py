"""Incremental decoding of tokens to text: only complete characters, and no part of a stop string."""

from collections.abc import Callable, Sequence

HELD_BACK = "\ufffd"
LONGEST_CHARACTER = 8
"""Maximum number of tokens of one character; after that, an undecodable byte is emitted as U+FFFD."""


class TextStream:
    """Decodes a text token by token.

    Args:
        decode: maps token ids to text.
        before: token ids before the first new one; with some tokenizers, a token's text depends on them.
        stops: stop strings, which end the text.
    """

    def __init__(self, decode: Callable[[list[int]], str], before: Sequence[int], stops: Sequence[str]) -> None:
        """Start without new tokens."""
        self.decode, self.stops = decode, [stop for stop in stops if stop]
        self.context, self.pending = list(before)[-LONGEST_CHARACTER:], list[int]()
        self.held, self.stopped = "", False

    def push(self, token: int) -> str:
        """Add a token; return the text that can no longer change."""
        if self.stopped:
            return ""
        self.pending.append(token)
        certain = len(self.pending)
        if self._fresh(certain).endswith(HELD_BACK):
            if certain < LONGEST_CHARACTER:
                return ""
            certain = 1  # the first token cannot belong to an incomplete character any more
        fresh = self._fresh(certain)
        self.context, self.pending = (
            (self.context + self.pending[:certain])[-LONGEST_CHARACTER:],
            self.pending[certain:],
        )
        return self._release(fresh)

    def finish(self) -> str:
        """Return the text that was held back; empty after a stop string."""
        if self.stopped:
            return ""
        text = self._release(self._fresh(len(self.pending))) + self.held
        self.pending, self.held = [], ""
        return text

    def _fresh(self, tokens: int) -> str:
        return self.decode(self.context + self.pending[:tokens])[len(self.decode(self.context)) :]

    def _release(self, fresh: str) -> str:
        """Return the text up to a possible beginning of a stop string, and hold back the rest."""
        text = self.held + fresh
        found = [(place + len(stop), place) for stop in self.stops if (place := text.find(stop)) >= 0]
        if found:  # the stop string that is complete first, as if the text were read letter by letter
            self.stopped, self.held = True, ""
            return text[: min(found)[1]]
        keep = max((n for stop in self.stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
        self.held = text[len(text) - keep :]
        return text[: len(text) - keep]
