"""Sentencepiece: a unigram model trained on the text, or a given .model file."""

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gptloom.data.corpus import Corpus
from gptloom.data.tokenizers.base import (
    CURE,
    END_OF_TEXT,
    FILE,
    AnyIds,
    SubwordTokenizer,
    entry,
    limited,
    read_side_file,
    to_json,
)
from gptloom.errors import ConfigError, InputError

TRAINED_ON = 20_000_000
"""Characters of the text, from its beginning, that a vocabulary is learned from at most (the trainer holds some 50 bytes for each)."""

MODEL_FILE = "tokenizer.model"

_SPACE = "\u2581"
_SENTENCE = 1000


class SentencePieceTokenizer(SubwordTokenizer):
    """A sentencepiece model. One trained here is lossless; a given one may normalise the text or lack characters."""

    kind = "sentencepiece"

    def __init__(self, model: bytes, where: str = MODEL_FILE) -> None:
        """Read the bytes of a .model file; InputError, naming `where`, when they are not one."""
        try:
            self._processor = _library().SentencePieceProcessor(model_proto=model)
            self._model = model
            pieces = self._processor
            table = [self._spelling(index) for index in range(pieces.get_piece_size())]
            self._bytes = {table[index]: index for index in range(len(table)) if pieces.is_byte(index)}
            self._prefixed = pieces.encode("a", out_type=str)[0].startswith(_SPACE)
            end = pieces.eos_id()
        except (RuntimeError, ValueError, LookupError):  # also pieces that are no bytes, or none at all
            raise InputError("is not a sentencepiece model", where=where, cure=CURE) from None
        super().__init__(table, end if end >= 0 else None)

    @classmethod
    def train(cls, corpus: Corpus, vocab_size: int) -> "SentencePieceTokenizer":
        """Learn a lossless unigram model with byte fallback on the first `TRAINED_ON` characters of a text.

        Args:
            corpus: the text; a note is added to it when it is longer than was read.
            vocab_size: tokens, with the 256 bytes; there are fewer when the text has no more pieces.

        Raises:
            ConfigError: so few tokens cannot hold the bytes and the text's characters.
        """
        model = io.BytesIO()
        options = {
            "vocab_size": vocab_size,
            "hard_vocab_limit": False,
            "byte_fallback": True,
            "normalization_rule_name": "identity",
            "add_dummy_prefix": False,
            "remove_extra_whitespaces": False,
            "user_defined_symbols": ["\n"],
            "unk_id": 0,
            "bos_id": -1,
            "eos_id": 1 if corpus.several else -1,
            "pad_id": -1,
            "eos_piece": END_OF_TEXT,
            "minloglevel": 2,
        }
        try:
            _library().SentencePieceTrainer.train(sentence_iterator=_sentences(corpus), model_writer=model, **options)
        except RuntimeError as error:
            reason = str(error).rpartition("] ")[2] or "the trainer refused the text"
            cure = "give a larger size, or bpe:SIZE"
            raise ConfigError(
                f"sentencepiece:{vocab_size} cannot be trained: {reason}", where="--data.tokenizer", cure=cure
            ) from None
        if corpus.characters > TRAINED_ON:
            corpus.notes.append(f"the sentencepiece vocabulary was learned on the first {TRAINED_ON:,} characters")
        return cls(model.getvalue())

    def decode(self, ids: AnyIds) -> str:
        """The text of some ids; see `Tokenizer.decode`."""
        text = super().decode(ids)
        return text.removeprefix(" ") if self._prefixed else text

    def files(self) -> dict[str, bytes]:
        """The model, and JSON that names its hash."""
        return {
            FILE: to_json({"kind": self.kind, "model_sha256": hashlib.sha256(self._model).hexdigest()}),
            MODEL_FILE: self._model,
        }

    @classmethod
    def load(cls, path: Path, content: Mapping[str, Any]) -> "SentencePieceTokenizer":
        """Build it from its JSON file and the model beside it."""
        model = path.parent / MODEL_FILE
        return cls(read_side_file(model, entry(content, "model_sha256", str, path)), str(model))

    def _spelling(self, index: int) -> bytes:
        pieces = self._processor
        text: str = pieces.id_to_piece(index)
        if pieces.is_byte(index):
            return bytes([int(text[3:5], 16)])
        if pieces.is_control(index) or pieces.is_unused(index):
            return b""
        return "\ufffd".encode() if pieces.is_unknown(index) else text.replace(_SPACE, " ").encode()

    def _encode_chunks(self, chunks: Sequence[str]) -> Sequence[Sequence[int]]:
        return [self._encode_chunk(chunk) for chunk in chunks]

    def _encode_chunk(self, chunk: str) -> list[int]:
        # A model that puts a space before every text would add one at each cut; cuts are before a space.
        chunk = chunk.removeprefix(" ") if self._prefixed else chunk
        mark = [self._bytes[bytes([value])] for value in _SPACE.encode()] if self._bytes else []
        if not mark or _SPACE not in chunk:
            return list(self._processor.encode(chunk))
        # The library takes U+2581 for a space; spelled in bytes it stays what it is.
        first, *rest = chunk.split(_SPACE)
        ids = list(self._processor.encode(first))
        for part in rest:
            ids += mark + list(self._processor.encode(part))
        return ids


def _sentences(corpus: Corpus) -> Iterator[str]:
    """Lines to learn from, the longest cut because the trainer leaves out what is longer than 4192 bytes."""
    for text in limited(corpus.pieces(), TRAINED_ON):
        for line in text.split("\n"):
            for start in range(0, len(line), _SENTENCE):
                yield line[start : start + _SENTENCE]


def _library() -> Any:
    try:
        import sentencepiece
    except ImportError:
        raise InputError(
            "needs the package sentencepiece", where="--data.tokenizer", cure='pip install "gptloom[tokenizers]"'
        ) from None
    return sentencepiece
