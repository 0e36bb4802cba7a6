"""Text from tokens as they come: whole characters only, and nothing of a stop string."""

from collections.abc import Callable, Sequence

HELD_BACK = "\ufffd"
LONGEST_CHARACTER = 8
"""Tokens that may be needed for one character; after that an undecodable byte is shown as it is."""


class TextStream:
    """Decodes one growing text.

    Args:
        decode: ids to text.
        before: the ids before the first new one; some tokenizers decode a token differently after another.
        stops: strings that end the text.
    """

    def __init__(self, decode: Callable[[list[int]], str], before: Sequence[int], stops: Sequence[str]) -> None:
        """Nothing new yet."""
        self.decode, self.stops = decode, [stop for stop in stops if stop]
        self.context, self.pending = list(before)[-LONGEST_CHARACTER:], list[int]()
        self.held, self.stopped = "", False

    def push(self, token: int) -> str:
        """Take a token; returns the text that is now certain."""
        if self.stopped:
            return ""
        self.pending.append(token)
        certain = len(self.pending)
        if self._fresh(certain).endswith(HELD_BACK):
            if certain < LONGEST_CHARACTER:
                return ""
            certain = 1  # the first of so many is no part of a character that may yet come
        fresh = self._fresh(certain)
        self.context, self.pending = (
            (self.context + self.pending[:certain])[-LONGEST_CHARACTER:],
            self.pending[certain:],
        )
        return self._release(fresh)

    def finish(self) -> str:
        """Whatever was held back; nothing after a stop string."""
        if self.stopped:
            return ""
        text = self._release(self._fresh(len(self.pending))) + self.held
        self.pending, self.held = [], ""
        return text

    def _fresh(self, tokens: int) -> str:
        return self.decode(self.context + self.pending[:tokens])[len(self.decode(self.context)) :]

    def _release(self, fresh: str) -> str:
        """Let go of all that cannot be the beginning of a stop string any more."""
        text = self.held + fresh
        found = [(place + len(stop), place) for stop in self.stops if (place := text.find(stop)) >= 0]
        if found:  # the one that was complete first, as if the letters had come one by one
            self.stopped, self.held = True, ""
            return text[: min(found)[1]]
        keep = max((n for stop in self.stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
        self.held = text[len(text) - keep :]
        return text[: len(text) - keep]
