"""Tokenizers of tiktoken and sentencepiece.

tiktoken's encodings are saved completely, so that a trained model needs no download. A sentencepiece tokenizer is a
unigram model trained on the text, or a given .model file.
"""

import base64
import binascii
import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gptloom.config.run import OnUnknown
from gptloom.data.corpus import Corpus
from gptloom.data.tokenizers.base import (
    CURE,
    END_OF_TEXT,
    FILE,
    AnyIds,
    check_ids,
    entry,
    read_side_file,
    spelling_table,
    to_json,
    unused_names,
)
from gptloom.data.tokenizers.subword import Encoded, SubwordTokenizer, limited, token_ends
from gptloom.errors import ConfigError, InputError, MachineError, nearest

RANKS_FILE = "tokenizer.tiktoken"


class TiktokenTokenizer(SubwordTokenizer):
    """A byte-level BPE encoding of OpenAI's tiktoken, or another encoding of the same form."""

    kind = "tiktoken"

    def __init__(self, name: str, pattern: str, ranks: Mapping[bytes, int], special_tokens: Mapping[str, int]) -> None:
        """Build the encoding.

        Args:
            name: its name.
            pattern: the regular expression that splits text into words.
            ranks: {bytes of a token: id}; every single byte must be a token.
            special_tokens: {text of a special token: id}.

        Raises:
            InputError: two tokens have the same id, a byte is missing, or the pattern is invalid.
        """
        ids = [*ranks.values(), *special_tokens.values()]
        if len(set(ids)) != len(ids) or any(bytes([value]) not in ranks for value in range(256)):
            raise InputError("its ranks must contain every byte, and each id once", where=name, cure=CURE)
        check_ids(ids, name)
        table = spelling_table(
            {rank: spelling for spelling, rank in ranks.items()} | dict.fromkeys(special_tokens.values(), b"")
        )
        try:
            self._encoding = _library("tiktoken").Encoding(
                name=name, pat_str=pattern, mergeable_ranks=dict(ranks), special_tokens=dict(special_tokens)
            )
        except ValueError as error:
            raise InputError(f"its pattern cannot be used: {error}", where=name, cure=CURE) from None
        self._pattern, self._ranks, self._special_tokens = pattern, dict(ranks), dict(special_tokens)
        super().__init__(table, special_tokens.get(END_OF_TEXT))

    @classmethod
    def named(cls, name: str) -> "TiktokenTokenizer":
        """Load an encoding of tiktoken by name, such as gpt2 or cl100k_base; tiktoken downloads it at the first use.

        Raises:
            ConfigError: there is no encoding of this name.
            MachineError: the encoding could not be downloaded.
        """
        library = _library("tiktoken")
        known = library.list_encoding_names()
        if name not in known:
            raise ConfigError(
                f"tiktoken has no encoding {name!r}",
                where="--data.tokenizer",
                cure=nearest(name, known) or f"choose from {', '.join(known)}",
            )
        try:
            encoding = library.get_encoding(name)
        except OSError:
            cure = (
                "connect to the network, train a tokenizer on the text (--data.tokenizer bpe:4096), "
                "or give the path of a tokenizer.json"
            )
            raise MachineError(
                "tiktoken could not download its vocabulary", where=f"tiktoken:{name}", cure=cure
            ) from None
        return cls(name, encoding._pat_str, encoding._mergeable_ranks, encoding._special_tokens)

    def padded(self, count: int) -> "TiktokenTokenizer":
        """Return the tokenizer with additional unused special tokens; see `Tokenizer.padded`."""
        first = self.vocab_size
        unused = {name: first + place for place, name in enumerate(unused_names(first, count))}
        return TiktokenTokenizer(self._encoding.name, self._pattern, self._ranks, self._special_tokens | unused)

    def files(self) -> dict[str, bytes]:
        """Return the ranks in tiktoken's format, and JSON with the rest."""
        ranks = b"".join(
            base64.b64encode(token) + f" {rank}\n".encode()
            for token, rank in sorted(self._ranks.items(), key=lambda item: item[1])
        )
        content = {
            "kind": self.kind,
            "name": self._encoding.name,
            "pattern": self._pattern,
            "special_tokens": dict(sorted(self._special_tokens.items())),
            "ranks_sha256": hashlib.sha256(ranks).hexdigest(),
        }
        return {FILE: to_json(content), RANKS_FILE: ranks}

    @classmethod
    def load(cls, path: Path, content: Mapping[str, Any]) -> "TiktokenTokenizer":
        """Load a JSON file, and the ranks file in the same folder."""
        side = path.parent / RANKS_FILE
        try:
            lines = (
                line.split() for line in read_side_file(side, entry(content, "ranks_sha256", str, path)).splitlines()
            )
            ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in lines}
        except (ValueError, binascii.Error):
            raise InputError("is not a list of tokens and ranks", where=str(side), cure=CURE) from None
        special = entry(content, "special_tokens", dict, path)
        if not all(isinstance(index, int) for index in special.values()):
            raise InputError("its special tokens must have integer ids", where=str(path), cure=CURE)
        return cls(entry(content, "name", str, path), entry(content, "pattern", str, path), ranks, special)

    def _encode_chunks(self, chunks: Sequence[str], on_unknown: OnUnknown) -> Sequence[Encoded]:
        if len(chunks) == 1:  # a prompt: without threads
            return [Encoded(self._encoding.encode_ordinary(chunks[0]))]
        return [Encoded(ids) for ids in self._encoding.encode_ordinary_batch(list(chunks))]


TRAINED_ON = 20_000_000
"""Maximum number of first characters on which a vocabulary is trained (the trainer needs about 50 bytes for each)."""

MODEL_FILE = "tokenizer.model"

_SPACE = "\u2581"
_SENTENCE = 1000
_PROBE = "  A\u00e9e\u0301 \uff21\t\r\u00a0\u200b\x01 "  # a text that normalisation rules change


class SentencePieceTokenizer(SubwordTokenizer):
    """A sentencepiece model. A model trained here is lossless; a given one may normalise text or lack characters."""

    kind = "sentencepiece"

    def __init__(self, model: bytes, where: str = MODEL_FILE) -> None:
        """Parse the bytes of a .model file; raises InputError, naming `where`, if they are invalid."""
        try:
            self._processor = _library("sentencepiece").SentencePieceProcessor(model_proto=model)
            self._model = model
            pieces = self._processor
            table = [self._spelling(index) for index in range(pieces.get_piece_size())]
            self._bytes = {table[index]: index for index in range(len(table)) if pieces.is_byte(index)}
            end = pieces.eos_id()
            self._faithful = bool(self._bytes) and pieces.normalize(_PROBE) == _PROBE.replace(" ", _SPACE)
            self.unknown = None if self._bytes else pieces.unk_id()
        except (RuntimeError, ValueError, LookupError):  # also for invalid byte pieces, or no pieces
            raise InputError("is not a sentencepiece model", where=where, cure=CURE) from None
        super().__init__(table, end if end >= 0 else None)

    @classmethod
    def train(cls, corpus: Corpus, vocab_size: int) -> "SentencePieceTokenizer":
        """Train a lossless unigram model with byte fallback on the first `TRAINED_ON` characters of a text.

        Args:
            corpus: the text; a note is added if it was not read to its end.
            vocab_size: tokens, including the 256 bytes; fewer if the text has no more pieces.

        Raises:
            ConfigError: the vocabulary is too small for the bytes and the text's characters.
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
            "required_chars": _SPACE,  # a space that is rare, or that the text lacks, would be encoded as U+2581
            "unk_id": 0,
            "bos_id": -1,
            "eos_id": 1 if corpus.several else -1,
            "pad_id": -1,
            "eos_piece": END_OF_TEXT,
            "minloglevel": 2,
        }
        try:
            _library("sentencepiece").SentencePieceTrainer.train(
                sentence_iterator=_sentences(corpus), model_writer=model, **options
            )
        except RuntimeError as error:
            reason = str(error).rpartition("] ")[2] or "the trainer refused the text"
            cure = "give a larger size, or bpe:SIZE"
            raise ConfigError(
                f"sentencepiece:{vocab_size} cannot be trained: {reason}", where="--data.tokenizer", cure=cure
            ) from None
        if corpus.characters > TRAINED_ON:
            corpus.notes.append(f"the sentencepiece vocabulary was trained on the first {TRAINED_ON:,} characters")
        return cls(model.getvalue())

    def decode(self, ids: AnyIds) -> str:
        """Decode ids with the library; see `Tokenizer.decode`."""
        return str(self._processor.decode([int(index) for index in ids]))

    def files(self) -> dict[str, bytes]:
        """Return the model, and JSON with its hash."""
        return {
            FILE: to_json({"kind": self.kind, "model_sha256": hashlib.sha256(self._model).hexdigest()}),
            MODEL_FILE: self._model,
        }

    @classmethod
    def load(cls, path: Path, content: Mapping[str, Any]) -> "SentencePieceTokenizer":
        """Load a JSON file, and the model file in the same folder."""
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

    def _encode_chunks(self, chunks: Sequence[str], on_unknown: OnUnknown) -> Sequence[Encoded]:
        return [self._spelled(chunk) if self._faithful else self._located(chunk) for chunk in chunks]

    def _located(self, chunk: str) -> Encoded:
        found = self._processor.encode(chunk, out_type="offset_mapping")
        return Encoded(found["ids"], token_ends(found["offsets"], chunk))

    def _spelled(self, chunk: str) -> Encoded:
        if _SPACE not in chunk:
            return Encoded(self._processor.encode(chunk))
        # The library reads U+2581 as a space; encoded as bytes it is preserved.
        mark = [self._bytes[bytes([value])] for value in _SPACE.encode()]
        first, *rest = chunk.split(_SPACE)
        ids = list(self._processor.encode(first))
        for part in rest:
            ids += mark + list(self._processor.encode(part))
        return Encoded(ids)


def _sentences(corpus: Corpus) -> Iterator[str]:
    """Yield lines for the trainer; long lines are split, because the trainer skips lines of more than 4192 bytes."""
    for text in limited(corpus.pieces(), TRAINED_ON):
        for line in text.split("\n"):
            for start in range(0, len(line), _SENTENCE):
                yield line[start : start + _SENTENCE]


def _library(name: str) -> Any:
    """Import tiktoken or sentencepiece.

    Raises:
        InputError: the package is not installed.
    """
    try:
        if name == "tiktoken":
            import tiktoken as library
        else:
            import sentencepiece as library
    except ImportError:
        raise InputError(
            f"needs the package {name}", where="--data.tokenizer", cure='pip install "gptloom[tokenizers]"'
        ) from None
    return library
