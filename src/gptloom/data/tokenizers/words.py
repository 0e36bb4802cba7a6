"""Words that occur again are encoded once: a fast path for byte-level tokenizers whose tokens never reach from a word into the space behind it."""

import re
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, pairwise

import numpy as np
from jaxtyping import Int64

from gptloom.data.tokenizers.base import Ids, id_dtype

KEPT = 1 << 22
"""Characters of words that are remembered at most, in some 25 bytes each; then all are forgotten."""

_TOGETHER = 1 << 12  # words that are encoded as one text: enough that a text costs nothing, few enough that there is work for every core

# A word is white space and what follows it, up to the next white space. What one library takes for white space and another may not
# never ends a word, so that the words are right for both.
_SPACE, _VISIBLE, _DOUBTFUL = r"[\s\u180e]", r"[^\s\u180e]", r"[\x0b\x0c\x1c-\x1f\x85\xa0\u1680\u180e\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"
_WORD = re.compile(f"{_SPACE}*{_VISIBLE}+(?:{_DOUBTFUL}{_SPACE}*{_VISIBLE}*)*|{_SPACE}+")
# These can stand behind one another in one text, and are the same words there.
_JOINS = re.compile(f"[ \\t\\r\\n].*{_VISIBLE}", re.DOTALL)


class Words:
    """The ids of texts, word by word.

    It is exact where no token spans a visible character and a space, tab or line end behind it, and where the tokens
    of a text spell its bytes.
    """

    def __init__(self, encode: Callable[[list[str]], Iterable[Sequence[int]]], lengths: Int64[np.ndarray, " vocabulary"]) -> None:
        """Remember what `encode`, which is given several texts, makes of each word; `lengths` are the bytes that each id stands for."""
        self._encode, self._lengths, self._dtype = encode, lengths, id_dtype(len(lengths))
        self._known: dict[str, bytes] = {}
        self._kept = 0

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """The ids of each text."""
        words = [_WORD.findall(text) for text in texts]
        new = list(set(chain.from_iterable(words)).difference(self._known))
        characters = sum(map(len, new))
        if 2 * characters > sum(map(len, texts)):  # there is little to gain
            return [np.array(ids, self._dtype) for ids in self._encode(list(texts))]
        if self._kept + characters > KEPT:
            self._known, self._kept = {}, 0
            new = list(set(chain.from_iterable(words)))
        self._learn(new)
        self._kept += sum(map(len, new))
        return [np.frombuffer(b"".join(map(self._known.__getitem__, each)), self._dtype) for each in words]

    def _learn(self, words: list[str]) -> None:
        """Encode words, most of them many at a time: a text of its own costs each more than its tokens do."""
        joined = [word for word in words if _JOINS.fullmatch(word)]
        alone = set(words).difference(joined)
        groups = [joined[start : start + _TOGETHER] for start in range(0, len(joined), _TOGETHER)] + [[word] for word in alone]
        for group, ids in zip(groups, self._encode(["".join(group) for group in groups]), strict=True):
            found = np.array(ids, self._dtype)
            spelled = np.cumsum(self._lengths[found])
            ends = np.searchsorted(spelled, np.cumsum([len(word.encode()) for word in group]), side="right") * self._dtype.itemsize
            content = found.tobytes()
            self._known |= {word: content[start:end] for word, (start, end) in zip(group, pairwise([0, *ends.tolist()]), strict=True)}
