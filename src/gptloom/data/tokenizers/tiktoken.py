"""Tiktoken's encodings, kept complete so that a trained model needs no download."""

import base64
import binascii
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gptloom.data.tokenizers.base import (
    CURE,
    END_OF_TEXT,
    FILE,
    SubwordTokenizer,
    check_ids,
    entry,
    read_side_file,
    spelling_table,
    to_json,
    unused_names,
)
from gptloom.errors import ConfigError, InputError, MachineError, nearest

RANKS_FILE = "tokenizer.tiktoken"


class TiktokenTokenizer(SubwordTokenizer):
    """One of OpenAI's byte-level BPE encodings, or another of the same make."""

    kind = "tiktoken"

    def __init__(self, name: str, pattern: str, ranks: Mapping[bytes, int], special_tokens: Mapping[str, int]) -> None:
        """Build the encoding.

        Args:
            name: what it is called.
            pattern: the regular expression that cuts text into words.
            ranks: the bytes of each token and its id; every single byte must be there.
            special_tokens: the text of each special token and its id.

        Raises:
            InputError: an id stands for two tokens, a byte is missing, or the pattern is not one.
        """
        ids = [*ranks.values(), *special_tokens.values()]
        if len(set(ids)) != len(ids) or any(bytes([value]) not in ranks for value in range(256)):
            raise InputError("its ranks must hold every byte, and each id once", where=name, cure=CURE)
        check_ids(ids, name)
        table = spelling_table(
            {rank: spelling for spelling, rank in ranks.items()} | dict.fromkeys(special_tokens.values(), b"")
        )
        try:
            self._encoding = _library().Encoding(
                name=name, pat_str=pattern, mergeable_ranks=dict(ranks), special_tokens=dict(special_tokens)
            )
        except ValueError as error:
            raise InputError(f"its pattern cannot be used: {error}", where=name, cure=CURE) from None
        self._pattern, self._ranks, self._special_tokens = pattern, dict(ranks), dict(special_tokens)
        super().__init__(table, special_tokens.get(END_OF_TEXT))

    @classmethod
    def named(cls, name: str) -> "TiktokenTokenizer":
        """One of tiktoken's own encodings, such as gpt2 or cl100k_base; it downloads them when it has not before.

        Raises:
            ConfigError: there is no encoding of this name.
            MachineError: it could not be downloaded.
        """
        library = _library()
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
            cure = "connect to the network, train one on the text (--data.tokenizer bpe:4096), or give the path of a tokenizer.json"
            raise MachineError(
                "tiktoken could not download its vocabulary", where=f"tiktoken:{name}", cure=cure
            ) from None
        return cls(name, encoding._pat_str, encoding._mergeable_ranks, encoding._special_tokens)

    def padded(self, count: int) -> "TiktokenTokenizer":
        """With special tokens that no text has; see `Tokenizer.padded`."""
        first = self.vocab_size
        unused = {name: first + place for place, name in enumerate(unused_names(first, count))}
        return TiktokenTokenizer(self._encoding.name, self._pattern, self._ranks, self._special_tokens | unused)

    def files(self) -> dict[str, bytes]:
        """The ranks in tiktoken's own format, and JSON with the rest."""
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
        """Build it from its JSON file and the ranks beside it."""
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
            raise InputError("its special tokens must have whole numbers", where=str(path), cure=CURE)
        return cls(entry(content, "name", str, path), entry(content, "pattern", str, path), ranks, special)

    def _encode_chunks(self, chunks: Sequence[str]) -> Sequence[Sequence[int]]:
        if len(chunks) == 1:  # no threads for a prompt
            return [self._encoding.encode_ordinary(chunks[0])]
        return list(self._encoding.encode_ordinary_batch(list(chunks)))


def _library() -> Any:
    try:
        import tiktoken
    except ImportError:
        raise InputError(
            "needs the package tiktoken", where="--data.tokenizer", cure='pip install "gptloom[tokenizers]"'
        ) from None
    return tiktoken
