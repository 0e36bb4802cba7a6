"""Words that occur again are encoded once: a fast path for byte-level tokenizers whose tokens never reach from a word into the space behind it.

Byte-level BPE trained on the text, and any tokenizer.json in the format of Hugging Face's tokenizers library.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, pairwise
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import Int64
from tokenizers import decoders, models, pre_tokenizers, trainers

from gptloom.data.corpus import Corpus
from gptloom.data.tokenizers.base import (
    CURE,
    END_OF_TEXT,
    FILE,
    AnyIds,
    Ids,
    SubwordTokenizer,
    check_ids,
    id_dtype,
    limited,
    spelling_table,
    unused_names,
)
from gptloom.errors import InputError

KEPT = 1 << 22
"""Characters of words that are remembered at most, in some 25 bytes each; then all are forgotten."""

_TOGETHER = (
    1 << 12
)  # words that are encoded as one text: enough that a text costs nothing, few enough that there is work for every core

# A word is white space and what follows it, up to the next white space. What one library takes for white space and
# another may not never ends a word, so that the words are right for both.
_SPACE, _VISIBLE, _DOUBTFUL = (
    r"[\s\u180e]",
    r"[^\s\u180e]",
    r"[\x0b\x0c\x1c-\x1f\x85\xa0\u1680\u180e\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]",
)
_WORD = re.compile(f"{_SPACE}*{_VISIBLE}+(?:{_DOUBTFUL}{_SPACE}*{_VISIBLE}*)*|{_SPACE}+")
# These can stand behind one another in one text, and are the same words there.
_JOINS = re.compile(f"[ \\t\\r\\n].*{_VISIBLE}", re.DOTALL)


class Words:
    """The ids of texts, word by word.

    It is exact where no token spans a visible character and a space, tab or line end behind it, and where the tokens
    of a text spell its bytes.
    """

    def __init__(
        self, encode: Callable[[list[str]], Iterable[Sequence[int]]], lengths: Int64[np.ndarray, " vocabulary"]
    ) -> None:
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
        groups = [joined[start : start + _TOGETHER] for start in range(0, len(joined), _TOGETHER)] + [
            [word] for word in alone
        ]
        for group, ids in zip(groups, self._encode(["".join(group) for group in groups]), strict=True):
            found = np.array(ids, self._dtype)
            spelled = np.cumsum(self._lengths[found])
            ends = (
                np.searchsorted(spelled, np.cumsum([len(word.encode()) for word in group]), side="right")
                * self._dtype.itemsize
            )
            content = found.tobytes()
            self._known |= {
                word: content[start:end]
                for word, (start, end) in zip(group, pairwise([0, *ends.tolist()]), strict=True)
            }


TRAINED_ON = 200_000_000
"""Characters of the text, from its beginning, that a vocabulary is learned from at most."""

_ENDLESS = re.compile(r"\S{1001}")
_PIECES = re.compile(r"\s*\S{1,1000}|\s+")
_ENDS = (END_OF_TEXT, "</s>", "<eos>")


class HuggingFaceTokenizer(SubwordTokenizer):
    """A tokenizer of the tokenizers library.

    Byte-level ones are lossless and count bytes exactly; of others neither is promised.
    """

    def __init__(self, text: str, where: str = FILE) -> None:
        """Read the JSON text of a tokenizer.json; InputError, naming `where`, when it is not one."""
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(text)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001  # the library raises Exception itself, and its Rust code panics with less than that
            raise InputError(f"is not a tokenizer.json: {error}", where=where, cure=CURE) from None
        # Before anything else: the library needs gigabytes to write down ids that are far apart.
        check_ids(self._tokenizer.get_vocab(with_added_tokens=True).values(), where)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        content: dict[str, Any] = json.loads(self._tokenizer.to_str())
        self._byte_level = "ByteLevel" in _types(content["decoder"])
        self.kind = "bpe" if self._byte_level and content["model"]["type"] == "BPE" else "huggingface"
        ends = (self._tokenizer.token_to_id(token) for token in _ENDS)
        super().__init__(self._table(), next((token for token in ends if token is not None), None))
        self._words = Words(self._whole, self._lengths) if self._byte_level and _keeps_to_words(content) else None

    @classmethod
    def train(cls, corpus: Corpus, vocab_size: int) -> "HuggingFaceTokenizer":
        """Learn a byte-level BPE (GPT-2's pattern) on the first `TRAINED_ON` characters of a text.

        Args:
            corpus: the text; a note is added to it when it is too short for so many tokens, or longer than was read.
            vocab_size: tokens, with the 256 bytes and the end of a text; there are fewer when no more pairs repeat.
        """
        tokenizer = tokenizers.Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            special_tokens=[END_OF_TEXT] if corpus.several else [],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(_words(limited(corpus.pieces(), TRAINED_ON)), trainer)
        trained = cls(tokenizer.to_str())
        if trained.vocab_size < vocab_size:
            corpus.notes.append(
                f"the text is too short for bpe:{vocab_size}; the vocabulary has {trained.vocab_size} tokens"
            )
        if corpus.characters > TRAINED_ON:
            corpus.notes.append(f"the BPE vocabulary was learned on the first {TRAINED_ON:,} characters")
        return trained

    def padded(self, count: int) -> "HuggingFaceTokenizer":
        """With special tokens that no text has; see `Tokenizer.padded`."""
        more = tokenizers.Tokenizer.from_str(self._tokenizer.to_str())
        more.add_special_tokens(unused_names(self.vocab_size, count))
        return HuggingFaceTokenizer(more.to_str())

    def files(self) -> dict[str, bytes]:
        """The plain tokenizer.json, as other programs read it."""
        return {FILE: self._tokenizer.to_str(pretty=True).encode()}

    def decode(self, ids: AnyIds) -> str:
        """The text of some ids; see `Tokenizer.decode`."""
        return (
            super().decode(ids)
            if self._byte_level
            else str(self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True))
        )

    def count_bytes(self, ids: AnyIds) -> int:
        """UTF-8 bytes; of tokenizers that are not byte-level, those of the decoded text."""
        return super().count_bytes(ids) if self._byte_level else len(self.decode(ids).encode())

    def _encode_chunks(self, chunks: Sequence[str]) -> Sequence[Ids | Sequence[int]]:
        return self._words.encode(chunks) if self._words else self._whole(chunks)

    def _whole(self, chunks: Sequence[str]) -> list[Sequence[int]]:
        """As the library encodes them, without a memory of words."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(chunks), add_special_tokens=False)]

    def _table(self) -> list[bytes]:
        """What each id stands for; numbers without a token stand for nothing."""
        added, table = self._tokenizer.get_added_tokens_decoder(), dict[int, bytes]()
        for token, index in self._tokenizer.get_vocab(with_added_tokens=True).items():
            if index in added:
                table[index] = b"" if added[index].special else token.encode()
            elif self._byte_level and all(char in _BYTES for char in token):
                table[index] = bytes(_BYTES[char] for char in token)
            else:
                table[index] = token.encode()
        return spelling_table(table)


def _words(chunks: Iterable[str]) -> Iterator[str]:
    """The chunks, those with endless words in pieces: the trainer's time grows with the square of a word's length."""
    for chunk in chunks:
        if _ENDLESS.search(chunk):
            yield from _PIECES.findall(chunk)
        else:
            yield chunk


def _keeps_to_words(content: dict[str, Any]) -> bool:
    """Whether it is as GPT-2's: its pattern begins a new token wherever white space follows something visible, and its tokens spell a text's bytes."""
    cut, model = content["pre_tokenizer"] or {}, content["model"]
    gpt2s = cut.get("type") == "ByteLevel" and cut.get("use_regex", True) and not cut.get("add_prefix_space")
    as_it_is = content["normalizer"] is None and all(token["special"] for token in content["added_tokens"])
    if not (gpt2s and as_it_is and model["type"] == "BPE"):
        return False
    altered = any(model.get(key) for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"))
    return not altered and model["vocab"].keys() >= _BYTES.keys()


def _types(part: Any) -> set[str]:
    """The types named in a component of a tokenizer.json, those inside a Sequence included."""
    if isinstance(part, dict):
        return {str(part.get("type"))}.union(*map(_types, part.values()))
    return set().union(*map(_types, part)) if isinstance(part, list) else set()


def _byte_characters() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte: itself where it is visible, else a character from U+0100 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [value for value in range(256) if value not in visible]
    return {chr(value): value for value in visible} | {chr(0x100 + n): value for n, value in enumerate(hidden)}


_BYTES = _byte_characters()
