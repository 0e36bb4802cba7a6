"""Words that occur again are encoded once: a fast path for tokenizers whose tokens never reach from a word into the space behind it."""

import re
from array import array
from collections.abc import Callable, Iterable, Sequence
from itertools import chain

import numpy as np

from gptloom.data.tokenizers.base import Ids, id_dtype

KEPT = 1 << 22
"""Characters of words that are remembered at most, in some 25 bytes each; then all are forgotten."""

# A word is white space and what follows it, up to the next white space. What one library takes for white space and another may not
# never ends a word, so that the words are right for both.
_SPACE, _VISIBLE, _DOUBTFUL = r"[\s\u180e]", r"[^\s\u180e]", r"[\x0b\x0c\x1c-\x1f\x85\xa0\u1680\u180e\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"
_WORD = re.compile(f"{_SPACE}*{_VISIBLE}+(?:{_DOUBTFUL}{_SPACE}*{_VISIBLE}*)*|{_SPACE}+")


class Words:
    """The ids of texts, word by word. It is exact where no token spans a visible character and a space, tab or line end behind it."""

    def __init__(self, encode: Callable[[list[str]], Iterable[Sequence[int]]], vocab_size: int) -> None:
        """Remember what `encode` makes of each word; ids are below `vocab_size`."""
        self._encode, self._dtype = encode, id_dtype(vocab_size)
        self._known: dict[str, bytes] = {}
        self._kept = 0

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """The ids of each text."""
        words = [_WORD.findall(text) for text in texts]
        new = list(set(chain.from_iterable(words)).difference(self._known))
        for word, ids in zip(new, self._encode(new), strict=True):
            self._known[word] = array(self._dtype.char, ids).tobytes()
        found = [np.frombuffer(b"".join(map(self._known.__getitem__, each)), self._dtype) for each in words]
        self._kept += sum(map(len, new))
        if self._kept > KEPT:
            self._known, self._kept = {}, 0
        return found
