"""Token ids of a text: the token file that caches them on disk, and the training and validation split.

A token file is a safetensors file, written as a stream, checked against its hash and memory-mapped.
"""

import hashlib
import json
import os
import secrets
from array import array
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Int64, UInt, UInt64

from gptloom.config.run import DataConfig
from gptloom.data.corpus import Corpus
from gptloom.data.tokenizers import Tokenizer
from gptloom.errors import PERMISSIONS, InputError, MachineError
from gptloom.files import json_object, regular_size

VERSION = 3

_HEADER = 4096
_DTYPES: dict[str, np.dtype[Any]] = {"U8": np.dtype("u1"), "U16": np.dtype("<u2"), "U32": np.dtype("<u4")}
_STARTS = np.dtype("<u8")
_SUM = "sha256"
_BLOCK = 1 << 22  # bytes per read
_TOGETHER = 1 << 18  # ids per write
_CURE = "delete the file; it is created again from the text"


@dataclass(frozen=True)
class TokenStore:
    """A tokenized text on disk.

    Attributes:
        path: the file.
        ids: all token ids, memory-mapped.
        document_starts: the index in `ids` of each document's first token, ascending from 0.
        text_sha256: hash of the text.
        tokenizer_fingerprint: fingerprint of the tokenizer.
        characters: length of the text in characters.
        bytes: length of the text in UTF-8 bytes.
    """

    path: Path
    ids: UInt[np.ndarray, " tokens"]
    document_starts: UInt64[np.ndarray, " documents"]
    text_sha256: str
    tokenizer_fingerprint: str
    characters: int
    bytes: int


def open_store(path: Path) -> TokenStore:
    """Memory-map a token file.

    Raises:
        InputError: the file is missing, is not a token file, or its size or hash contradicts its header.
    """
    cure = "run again with the text, which creates the file again"
    size = regular_size(path, cure=cure)
    try:
        with path.open("rb") as file:
            ids, starts, metadata = _parse(file.read(_HEADER), size)
            # Hash by reading, not through the map: mapped pages count as resident memory of the process.
            digest = _digest(file, ids[1])
        store = TokenStore(
            path=path,
            ids=_map(path, *ids),
            document_starts=_map(path, *starts),
            text_sha256=metadata["text_sha256"],
            tokenizer_fingerprint=metadata["tokenizer_fingerprint"],
            characters=int(metadata["characters"]),
            bytes=int(metadata["bytes"]),
        )
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(path), cure=cure) from None
    except (ValueError, KeyError, TypeError):
        raise InputError("is not a valid token file", where=str(path), cure=_CURE) from None
    if metadata.pop(_SUM, None) != _seal(digest, store.document_starts, metadata):
        raise InputError("is damaged: its hash is not the recorded hash", where=str(path), cure=_CURE)
    begins = store.document_starts
    if begins[0] != 0 or begins[-1] > len(store.ids) or (begins[1:] < begins[:-1]).any():
        raise InputError("has documents outside its tokens", where=str(path), cure=_CURE)
    return store


def write_store(file: BinaryIO, corpus: Corpus, tokenizer: Tokenizer, config: DataConfig) -> None:
    """Tokenize a corpus into an open token file.

    The ids are written first, after a gap for the header and the document starts, which are known at the end.

    Args:
        file: a writable binary file.
        corpus: the text.
        tokenizer: encodes the text.
        config: `on_unknown` is used.

    Raises:
        InputError: the text changed during the read, or has no known token.
    """
    name = next(name for name, dtype in _DTYPES.items() if dtype.itemsize == tokenizer.dtype.itemsize)
    ends = [tokenizer.end_of_text] if corpus.several and tokenizer.end_of_text is not None else []
    end_ids = np.array(ends, dtype=_DTYPES[name])
    file.seek(_HEADER + _STARTS.itemsize * corpus.documents)
    starts, begins, ids = array("Q"), True, _Ids(file, _DTYPES[name])
    for piece in tokenizer.encode_pieces(corpus.pieces(), config.on_unknown):
        if begins:
            starts.append(ids.written)
        ids.add(piece.ids)
        begins = piece.ends_document
        if begins:
            ids.add(end_ids)
    ids.flush()
    if len(starts) != corpus.documents:
        raise InputError(
            "changed while it was read",
            where=", ".join(corpus.sources[:3]),
            cure="run again when no program writes to it",
        )
    if not ids.written:
        raise InputError(
            "has no token that the tokenizer knows",
            where=", ".join(corpus.sources[:3]),
            cure="choose another tokenizer (--data.tokenizer)",
        )
    document_starts, metadata = np.array(starts, dtype=_STARTS), _metadata(corpus, tokenizer)
    file.seek(0)
    file.write(_header(name, len(starts), ids.written, metadata | {_SUM: _seal(ids.digest, document_starts, metadata)}))
    file.write(document_starts.tobytes())


class _Ids:
    """Buffered writer of ids.

    Attributes:
        written: number of ids added so far.
        digest: SHA-256 of the ids in the file.
    """

    def __init__(self, file: BinaryIO, dtype: np.dtype[Any]) -> None:
        self.written, self.digest = 0, hashlib.sha256()
        self._file, self._dtype = file, dtype
        self._held: list[np.ndarray] = []
        self._flushed = 0

    def add(self, ids: UInt[np.ndarray, " tokens"]) -> None:
        """Add ids to the buffer; flush it when it is full."""
        self._held.append(ids)
        self.written += len(ids)
        if self.written - self._flushed >= _TOGETHER:
            self.flush()

    def flush(self) -> None:
        """Write the buffer."""
        if self._held:
            content = np.concatenate(self._held, dtype=self._dtype, casting="same_kind").data
            self.digest.update(content)
            self._file.write(content)
        self._held, self._flushed = [], self.written


def _metadata(corpus: Corpus, tokenizer: Tokenizer) -> dict[str, str]:
    return {
        "format": f"gptloom tokens {VERSION}",
        "text_sha256": corpus.sha256,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "characters": str(corpus.characters),
        "bytes": str(corpus.bytes),
    }


def _digest(file: BinaryIO, offset: int) -> Any:
    """Return the SHA-256 object of a file's bytes from `offset`."""
    digest, block = hashlib.sha256(), bytearray(_BLOCK)
    file.seek(offset)
    while count := file.readinto(block):  # type: ignore[attr-defined]  # missing in typing's BinaryIO
        digest.update(memoryview(block)[:count])
    return digest


def _seal(digest: Any, document_starts: np.ndarray, metadata: dict[str, str]) -> str:
    """Return the hex SHA-256 of the ids (already in `digest`), the document starts and the metadata."""
    digest.update(np.ascontiguousarray(document_starts))
    digest.update(json.dumps(metadata, sort_keys=True).encode())
    return str(digest.hexdigest())


def _header(name: str, documents: int, tokens: int, metadata: dict[str, str]) -> bytes:
    middle = _STARTS.itemsize * documents
    content = {
        "__metadata__": metadata,
        "document_starts": {"dtype": "U64", "shape": [documents], "data_offsets": [0, middle]},
        "ids": {"dtype": name, "shape": [tokens], "data_offsets": [middle, middle + _DTYPES[name].itemsize * tokens]},
    }
    return (_HEADER - 8).to_bytes(8, "little") + json.dumps(content).encode().ljust(_HEADER - 8)


def _parse(head: bytes, size: int) -> tuple[tuple[Any, ...], tuple[Any, ...], dict[str, Any]]:
    """Parse the header: (dtype, offset, length) of the ids and of the document starts, and the metadata.

    Raises:
        ValueError, KeyError, TypeError: the header is not valid.
    """
    content = json_object(head[8:].decode())
    metadata, tokens, documents = (
        content["__metadata__"],
        content["ids"]["shape"][0],
        content["document_starts"]["shape"][0],
    )
    name = content["ids"]["dtype"]
    middle = _HEADER + _STARTS.itemsize * documents
    whole = head == _header(name, documents, tokens, metadata) and min(tokens, documents) > 0
    if (
        not whole
        or metadata["format"] != f"gptloom tokens {VERSION}"
        or size != middle + _DTYPES[name].itemsize * tokens
    ):
        raise ValueError
    return (_DTYPES[name], middle, tokens), (_STARTS, _HEADER, documents), metadata


def _map(path: Path, dtype: np.dtype[Any], offset: int, length: int) -> np.ndarray:
    # A plain array: indexing np.memmap, a subclass, costs microseconds more.
    return np.asarray(np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=(length,)))


_CACHE_CURE = "free some disk space, or name another folder (--data.cache)"


def cache_folder(config: DataConfig) -> Path:
    """Return the folder of token files and data sets (it may not exist): `config.cache` or the user's cache folder."""
    if config.cache is not None:
        return Path(config.cache)
    import platformdirs

    return Path(platformdirs.user_cache_dir("gptloom", appauthor=False))


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Write a file atomically: yields a temporary file, which is synced and renamed to `path` if the block succeeds.

    Raises:
        MachineError: the folder or the file cannot be written.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        with temporary.open("xb") as file:  # by the umask, unlike the files of tempfile
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        what, cure = f"cannot be written: {error.strerror or error}", _CACHE_CURE
        if isinstance(error, PermissionError):
            cure = f"name another folder (--data.cache), or {PERMISSIONS}"
        raise MachineError(what, where=str(path), cure=cure) from None
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


@dataclass(frozen=True)
class Tokens:
    """Part of a tokenized text.

    Attributes:
        ids: token ids, a view of the memory map.
        document_starts: the index in `ids` of each document's first token; the first is 0, even inside a document.
    """

    ids: UInt[np.ndarray, " tokens"]
    document_starts: Int64[np.ndarray, " documents"]

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.ids)


@dataclass(frozen=True)
class Split:
    """The training and the validation part of a text."""

    train: Tokens
    val: Tokens


def store_path(config: DataConfig, text_sha256: str, tokenizer_fingerprint: str) -> Path:
    """Return the path of a text's token file, which may not exist yet."""
    key = hashlib.sha256(f"{VERSION} {text_sha256} {tokenizer_fingerprint} {config.on_unknown}".encode()).hexdigest()
    return cache_folder(config) / "tokens" / f"{key[:32]}.safetensors"


def prepare(corpus: Corpus, tokenizer: Tokenizer, config: DataConfig) -> TokenStore:
    """Open the token file of a text, or create it in bounded memory.

    If there are several documents and the tokenizer has an end-of-text id, that id follows each document.

    Args:
        corpus: the text; a note is added if a damaged token file was replaced.
        tokenizer: encodes the text.
        config: `cache` and `on_unknown` are used.

    Raises:
        InputError: the text has unknown characters, or changed during the read.
        MachineError: the file cannot be written.
    """
    path = store_path(config, corpus.sha256, tokenizer.fingerprint)
    if path.exists():
        try:
            store = open_store(path)
            if (store.text_sha256, store.tokenizer_fingerprint) == (corpus.sha256, tokenizer.fingerprint):
                return store
            reason = "belongs to another text"
        except InputError as error:
            reason = error.what
        corpus.notes.append(f"the token file {path} {reason}; it was created again")
    with replacing(path) as file:
        write_store(file, corpus, tokenizer, config)
    return open_store(path)


def split(store: TokenStore, config: DataConfig, val_store: TokenStore | None = None) -> Split:
    """Split a text into a training and a validation part.

    By position, the first int((1 - val_fraction) n) tokens are for training, or more if the rest would be longer than
    val_tokens. By document, that cut moves to the nearest document boundary.

    Args:
        store: the text.
        config: `val_fraction`, `val_tokens` and `split` are used.
        val_store: a separate validation text; all of `store` is then for training.

    Raises:
        InputError: the split is by document and there is only one, or a part would have fewer than 2 tokens.
    """
    if val_store is not None:
        parts = Split(_part(store, 0, len(store.ids)), _part(val_store, 0, len(val_store.ids)))
    else:
        # Decimal: in binary, (1 - val_fraction) n can be just below an integer.
        cut = int((1 - Decimal(str(config.val_fraction))) * len(store.ids))
        cut = max(cut, len(store.ids) - config.val_tokens)
        if config.split == "document":
            cut = _nearest_boundary(store, cut)
        parts = Split(_part(store, 0, cut), _part(store, cut, len(store.ids)))
    for name, part in (("training", parts.train), ("validation", parts.val)):
        if len(part) < 2:
            what = f"the {name} part has {len(part)} token{'s' * (len(part) != 1)}, and at least 2 are needed"
            raise InputError(
                what, where=f"{len(store.ids)} tokens", cure="give a longer text, or change --data.val-fraction"
            )
    return parts


def _nearest_boundary(store: TokenStore, cut: int) -> int:
    boundaries = store.document_starts[1:].astype(np.int64)
    if not len(boundaries):
        raise InputError(
            "there is only one document, so it cannot be split between documents",
            where="--data.split",
            cure="use --data.split position",
        )
    return int(boundaries[np.abs(boundaries - cut).argmin()])


def _part(store: TokenStore, start: int, end: int) -> Tokens:
    first, last = np.searchsorted(store.document_starts, (start, end)).tolist()
    starts = store.document_starts[first:last].astype(np.int64) - start
    if not len(starts) or starts[0] != 0:
        starts = np.concatenate([np.zeros(1, np.int64), starts])
    return Tokens(store.ids[start:end], starts)
