"""Incremental decoding of tokens to text: only what can no longer change, and no part of a stop string."""

from collections.abc import Callable, Sequence

HELD_BACK = "\ufffd"
LONGEST_CHARACTER = 8
"""Maximum number of tokens of one character; after that, an undecodable byte is emitted as U+FFFD."""


class TextStream:
    """Decodes a text token by token; the pieces, joined, are the end of the text that the whole decodes to.

    Args:
        decode: maps token ids to text.
        before: token ids before the first new one; with some tokenizers, a token's text depends on them.
        stops: stop strings, which end the text.
        open_ended: whether the text of a token may change with the tokens after it (`Tokenizer.open_ended`). None: only
            incomplete characters change, which decode to U+FFFD.
    """

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        before: Sequence[int],
        stops: Sequence[str],
        open_ended: Callable[[int], bool] | None = None,
    ) -> None:
        """Start without new tokens."""
        self.decode, self.stops, self.open_ended = decode, [stop for stop in stops if stop], open_ended
        self.context, self.pending = list[int](), list[int]()
        self.held, self.stopped = "", False
        self._alone = dict[int, bool]()
        self._extend(list(before))

    def push(self, token: int) -> str:
        """Add a token; return the text that can no longer change."""
        if self.stopped:
            return ""
        self.pending.append(token)
        certain = len(self.pending)
        if self.open_ended is not None:
            if self.open_ended(token):
                return ""
        elif self._fresh(certain).endswith(HELD_BACK):
            if certain < LONGEST_CHARACTER:
                return ""
            certain = 1  # the first token cannot belong to an incomplete character any more
        fresh = self._fresh(certain)
        self._extend(self.pending[:certain])
        self.pending = self.pending[certain:]
        return self._release(fresh)

    def finish(self) -> str:
        """Return the text that was held back; empty after a stop string."""
        if self.stopped:
            return ""
        text = self._release(self._fresh(len(self.pending))) + self.held
        self.pending, self.held = [], ""
        return text

    def _extend(self, tokens: list[int]) -> None:
        """Add tokens to the context, and forget all before the last that is separate.

        The text of later tokens does not depend on the tokens before it: it has a text, so a later token is not the
        first, and it ends a character and a run of bytes.
        """
        last = next((place for place in reversed(range(len(tokens))) if self._is_separate(tokens[place])), None)
        self.context = self.context + tokens if last is None else tokens[last:]
        self._shown = len(self.decode(self.context))

    def _is_separate(self, token: int) -> bool:
        if token not in self._alone:
            text = self.decode([token])
            self._alone[token] = (
                bool(text) and HELD_BACK not in text and not (self.open_ended is not None and self.open_ended(token))
            )
        return self._alone[token]

    def _fresh(self, tokens: int) -> str:
        return self.decode(self.context + self.pending[:tokens])[self._shown :]

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
