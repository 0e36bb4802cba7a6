"""Byte-level BPE trained on the text, and any tokenizer.json of Hugging Face's tokenizers library.

`Words` caches the ids of each word, for byte-level tokenizers whose tokens never span a word and the space after it.
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

from gptloom.config.run import OnUnknown
from gptloom.data.corpus import Corpus
from gptloom.data.tokenizers.base import (
    CURE,
    END_OF_TEXT,
    FILE,
    AnyIds,
    Ids,
    check_ids,
    id_dtype,
    spelling_table,
    unused_names,
)
from gptloom.data.tokenizers.char import nearest
from gptloom.data.tokenizers.subword import Encoded, SubwordTokenizer, limited, token_ends
from gptloom.errors import InputError

KEPT = 1 << 22
"""Maximum characters of cached words (about 25 bytes each); then the cache is cleared."""

_TOGETHER = 1 << 12  # words per encoded text: enough to amortise the call, and few enough to occupy all cores

# A word is white space and the text after it, up to the next white space. Characters that are white space for only one
# of the two libraries never end a word, so that the words suit both.
_SPACE, _VISIBLE, _DOUBTFUL = (
    r"[\s\u180e]",
    r"[^\s\u180e]",
    r"[\x0b\x0c\x1c-\x1f\x85\xa0\u1680\u180e\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]",
)
_WORD = re.compile(f"{_SPACE}*{_VISIBLE}+(?:{_DOUBTFUL}{_SPACE}*{_VISIBLE}*)*|{_SPACE}+")
# Words of this form can be concatenated to one text, and remain the same words.
_JOINS = re.compile(f"[ \\t\\r\\n].*{_VISIBLE}", re.DOTALL)


class Words:
    """Encoder with a cache of words.

    It is exact if no token spans a visible character and the space, tab or line end after it, and if the bytes of a
    text's tokens are the bytes of the text.
    """

    def __init__(
        self, encode: Callable[[list[str]], Iterable[Sequence[int]]], lengths: Int64[np.ndarray, " vocabulary"]
    ) -> None:
        """Start with an empty cache.

        Args:
            encode: encodes several texts.
            lengths: number of bytes of each id.
        """
        self._encode, self._lengths, self._dtype = encode, lengths, id_dtype(len(lengths))
        self._known: dict[str, bytes] = {}
        self._kept = 0

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """Return the ids of each text."""
        words = [_WORD.findall(text) for text in texts]
        new = list(set(chain.from_iterable(words)).difference(self._known))
        characters = sum(map(len, new))
        if 2 * characters > sum(map(len, texts)):  # the cache would gain little
            return [np.array(ids, self._dtype) for ids in self._encode(list(texts))]
        if self._kept + characters > KEPT:
            self._known, self._kept = {}, 0
            new = list(set(chain.from_iterable(words)))
        self._learn(new)
        self._kept += sum(map(len, new))
        return [np.frombuffer(b"".join(map(self._known.__getitem__, each)), self._dtype) for each in words]

    def _learn(self, words: list[str]) -> None:
        """Encode new words, most of them in groups: the cost of a separate text exceeds that of a word's tokens."""
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
"""Maximum number of first characters of the text on which a vocabulary is trained."""

_ENDLESS = re.compile(r"\S{1001}")
_PIECES = re.compile(r"\s*\S{1,1000}|\s+")
_BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")
_UNKNOWN = "<|unknown|>"  # the token given to a library that has none
_ENDS = (END_OF_TEXT, "</s>", "<eos>")


class HuggingFaceTokenizer(SubwordTokenizer):
    """A tokenizer of Hugging Face's tokenizers library.

    Byte-level tokenizers are lossless and count bytes exactly; other tokenizers may do neither.
    """

    def __init__(self, text: str, where: str = FILE) -> None:
        """Parse the JSON text of a tokenizer.json; raises InputError, naming `where`, if it is invalid."""
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(text)
        except (KeyboardInterrupt, SystemExit):
            raise
        # The library raises Exception; a panic of its Rust code is a BaseException.
        except BaseException as error:  # noqa: BLE001
            raise InputError(f"is not a tokenizer.json: {error}", where=where, cure=CURE) from None
        # Check first: serializing ids with large gaps takes the library gigabytes.
        check_ids(self._tokenizer.get_vocab(with_added_tokens=True).values(), where)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        content: dict[str, Any] = json.loads(self._tokenizer.to_str())
        self._byte_level = "ByteLevel" in _types(content["decoder"]) <= {"ByteLevel", "Sequence", "Fuse"}
        self.kind = "bpe" if self._byte_level and content["model"]["type"] == "BPE" else "huggingface"
        ends = (self._tokenizer.token_to_id(token) for token in _ENDS)
        super().__init__(self._table(), next((token for token in ends if token is not None), None))
        self._words = Words(self._whole, self._lengths) if self._byte_level and _keeps_to_words(content) else None
        self._runs = _runs(self._tokenizer) if "ByteFallback" in _types(content["decoder"]) else None
        self._note_unknown(content)

    @classmethod
    def train(cls, corpus: Corpus, vocab_size: int) -> "HuggingFaceTokenizer":
        """Train a byte-level BPE (GPT-2's pattern) on the first `TRAINED_ON` characters of a text.

        Args:
            corpus: the text; a note is added if it is too short for the vocabulary, or was not read to its end.
            vocab_size: tokens, including the 256 bytes and the end-of-text id; fewer if no more pairs repeat.
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
            corpus.notes.append(f"the BPE vocabulary was trained on the first {TRAINED_ON:,} characters")
        return trained

    def padded(self, count: int) -> "HuggingFaceTokenizer":
        """Return the tokenizer with additional unused special tokens; see `Tokenizer.padded`."""
        more = tokenizers.Tokenizer.from_str(self._tokenizer.to_str())
        more.add_special_tokens(unused_names(self.vocab_size, count))
        return HuggingFaceTokenizer(more.to_str())

    def files(self) -> dict[str, bytes]:
        """Return a plain tokenizer.json, which other programs can read."""
        return {FILE: self._tokenizer.to_str(pretty=True).encode()}

    def decode(self, ids: AnyIds) -> str:
        """Decode ids; see `Tokenizer.decode`."""
        return (
            super().decode(ids)
            if self._byte_level
            else str(self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True))
        )

    def count_bytes(self, ids: AnyIds) -> int:
        """Count the UTF-8 bytes; of the decoded text if the tokenizer is not byte-level."""
        return super().count_bytes(ids) if self._byte_level else len(self.decode(ids).encode())

    @property
    def open_ended(self) -> Callable[[int], bool] | None:
        """Whether an id is a byte, or special: the library decodes a run of bytes, with its special ids, as a whole."""
        return None if self._runs is None else self._runs.__contains__

    def _note_unknown(self, content: dict[str, Any]) -> None:
        """Find the id of unknown text; a library without it, which drops such text or raises Exception, gets one."""
        model, vocab = content["model"], self._tokenizer.get_vocab(with_added_tokens=True)
        self._reader, self._drops, self._ids = self._tokenizer, False, np.arange(self.vocab_size)
        name = model.get("unk_token")
        if model.get("unk_id") is not None:
            name = model["vocab"][model["unk_id"]][0]
        every_byte = [f"<0x{value:02X}>" for value in range(256)] if model.get("byte_fallback") else []
        if "ByteLevel" in _types([content["pre_tokenizer"], content["normalizer"]]):
            every_byte = list(_BYTES)
        if name in vocab:
            self.unknown = vocab[name]
        elif not every_byte or not vocab.keys() >= set(every_byte):
            self.unknown, self._drops = self.vocab_size, model["type"] == "BPE"
            if model["type"] == "Unigram":
                lowest = min((score for _, score in model["vocab"]), default=0.0)
                model["unk_id"] = len(model["vocab"])
                model["vocab"].append([_UNKNOWN, lowest - 10.0])
            else:
                model["unk_token"] = _UNKNOWN
                model["vocab"][_UNKNOWN] = self.vocab_size
            self._reader = tokenizers.Tokenizer.from_str(json.dumps(content))
            self._reader.encode_special_tokens = True
            ids = {index: vocab.get(token, self.vocab_size) for token, index in self._reader.get_vocab().items()}
            self._ids = np.array([ids.get(index, 0) for index in range(max(ids) + 1)])

    def _encode_chunks(self, chunks: Sequence[str], on_unknown: OnUnknown) -> Sequence[Encoded]:
        if self._words:
            return [Encoded(ids) for ids in self._words.encode(chunks)]
        if on_unknown == "skip" and self._drops:
            encodings = self._tokenizer.encode_batch(list(chunks), add_special_tokens=False)
            return [
                Encoded(found.ids, token_ends(found.offsets, text))
                for found, text in zip(encodings, chunks, strict=True)
            ]
        encodings = self._reader.encode_batch(list(chunks), add_special_tokens=False)
        if on_unknown == "replace" and self._reader is not self._tokenizer:
            for place, text in enumerate(chunks):
                if _UNKNOWN in encodings[place].tokens:
                    encodings[place] = self._reader.encode(self._replaced(text), add_special_tokens=False)
        return [
            Encoded(self._ids[np.array(found.ids, np.int64)], token_ends(found.offsets, text))
            for found, text in zip(encodings, chunks, strict=True)
        ]

    def _replaced(self, text: str) -> str:
        """Replace each character that the tokenizer does not know by the nearest that it knows."""
        single = {spelling.decode(errors="ignore").replace("\u2581", " ") for spelling in self._spellings}
        chars = sorted({*text, *(char for char in single if len(char) == 1)})
        encodings = self._reader.encode_batch(chars, add_special_tokens=False)
        known = {char for char, encoding in zip(chars, encodings, strict=True) if _UNKNOWN not in encoding.tokens}
        alphabet = "".join(sorted(known & single))
        return text.translate({ord(char): next(nearest(char, alphabet), char) for char in {*text} - known})

    def _whole(self, chunks: Sequence[str]) -> list[Sequence[int]]:
        """Encode with the library, without the cache of words."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(chunks), add_special_tokens=False)]

    def _table(self) -> list[bytes]:
        """Return the bytes of each id; unused ids have none."""
        added, table = self._tokenizer.get_added_tokens_decoder(), dict[int, bytes]()
        for token, index in self._tokenizer.get_vocab(with_added_tokens=True).items():
            if index in added:
                table[index] = b"" if added[index].special else token.encode()
            elif self._byte_level and all(char in _BYTES for char in token):
                table[index] = bytes(_BYTES[char] for char in token)
            else:
                table[index] = token.encode()
        return spelling_table(table)


def _runs(tokenizer: tokenizers.Tokenizer) -> set[int]:
    """Return the ids of the bytes of a byte fallback, and the special ids, which do not end a run of bytes."""
    names = tokenizer.get_vocab(with_added_tokens=True)
    special = {index for index, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    return special.union(index for name, index in names.items() if _BYTE.fullmatch(name))


def _words(chunks: Iterable[str]) -> Iterator[str]:
    """Yield the chunks, with very long words split: the trainer's time is quadratic in the length of a word."""
    for chunk in chunks:
        if _ENDLESS.search(chunk):
            yield from _PIECES.findall(chunk)
        else:
            yield chunk


def _keeps_to_words(content: dict[str, Any]) -> bool:
    """Whether a tokenizer.json meets the conditions of `Words`, as GPT-2's does.

    Its pattern must start a new token at white space after a visible character, and its tokens must spell the text's
    bytes.
    """
    cut, model = content["pre_tokenizer"] or {}, content["model"]
    gpt2s = cut.get("type") == "ByteLevel" and cut.get("use_regex", True) and not cut.get("add_prefix_space")
    as_it_is = content["normalizer"] is None and all(token["special"] for token in content["added_tokens"])
    if not (gpt2s and as_it_is and model["type"] == "BPE"):
        return False
    altered = any(model.get(key) for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"))
    return not altered and model["vocab"].keys() >= _BYTES.keys()


def _types(part: Any) -> set[str]:
    """Return the types in a component of a tokenizer.json, including those inside a Sequence."""
    if isinstance(part, dict):
        return {str(part.get("type"))}.union(*map(_types, part.values()))
    return set().union(*map(_types, part)) if isinstance(part, list) else set()


def _byte_characters() -> dict[str, int]:
    """Map GPT-2's printable character of each byte to the byte: itself if visible, else a character from U+0100."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [value for value in range(256) if value not in visible]
    return {chr(value): value for value in visible} | {chr(0x100 + n): value for n, value in enumerate(hidden)}


_BYTES = _byte_characters()
