"""The process that opens a .pt file of another program: `python -m gptloom.interop.pt_reader FILE FOLDER`.

A .pt file is a zip archive with a pickle in it. torch.load(weights_only=True) reads only tensors and plain values and
executes nothing. As a second line of defence, it runs in this separate process with limited memory, time and output.
The results are FOLDER/tensors.safetensors and FOLDER/about.json; an error is one line on standard output.
"""

import json
import re
import sys
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

SPARE = 1 << 30
"""Bytes of memory allowed in addition to a multiple of the file's size."""

SECONDS = 120
"""Limit of processor time."""

LONGEST_PICKLE = 1 << 26
"""Maximum size in bytes of data.pkl, the part of the archive that lists the tensors."""


class Refused(Exception):
    """The file is refused; the message gives the reason."""


def read(path: Path, folder: Path) -> None:
    """Extract the tensors and the plain settings of a .pt file.

    Args:
        path: the file.
        folder: empty folder for the results.

    Raises:
        Refused: the file was not written by torch.save, contains something other than tensors and plain values, or
            contains no tensors.
    """
    _check_archive(path)
    content = _load(path)
    if not isinstance(content, Mapping):
        raise Refused(f"holds a {type(content).__name__}, not a dictionary")
    tensors = content["model"] if isinstance(content.get("model"), Mapping) else content
    weights = {str(name): _checked(str(name), one) for name, one in tensors.items() if isinstance(one, torch.Tensor)}
    if not weights or len(weights) < len(tensors):
        raise Refused("holds no weights by name" if not weights else "holds other things among the weights")
    arguments = content.get("model_args")
    plain = (
        {str(key): value for key, value in arguments.items() if isinstance(value, bool | int | float)}
        if isinstance(arguments, Mapping)
        else {}
    )
    with (folder / "about.json").open("w", encoding="utf-8") as file:
        json.dump({"model_args": plain if isinstance(arguments, Mapping) else None}, file)
    save_file({name: one.contiguous().clone() for name, one in weights.items()}, folder / "tensors.safetensors")


def _load(path: Path) -> Any:
    """Load the file with torch.load.

    Raises:
        Refused: it contains more than tensors and plain values.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        # pickle.UnpicklingError, compared by name to avoid the import of pickle. Its message must not be shown: it
        # recommends weights_only=False, which would execute the file.
        if type(error).__name__ != "UnpicklingError":
            raise
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise Refused(f"holds more than tensors and plain values{f': it calls {found[1]}' if found else ''}") from None


def _check_archive(path: Path) -> None:
    """Refuse an archive whose contents are larger than the file: torch.save does not compress."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        raise Refused("is not a .pt file of torch.save (PyTorch 1.6 or later), or is truncated") from None
    if any(one.compress_type != zipfile.ZIP_STORED or one.file_size != one.compress_size for one in entries):
        raise Refused("is compressed, which torch.save never does")
    if sum(one.file_size for one in entries) > path.stat().st_size:
        raise Refused("has parts that overlap")
    if any(one.filename.endswith("data.pkl") and one.file_size > LONGEST_PICKLE for one in entries):
        raise Refused("has a list of contents that is too long for a model")


def _checked(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor; refuse one that is not dense and real, or larger than its storage."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex():
        raise Refused(f"{name[:100]!r} is not a dense tensor of real numbers")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise Refused(f"{name[:100]!r} claims more numbers than it has")
    return tensor.detach()


def limit(path: Path) -> None:
    """Limit the memory (by the file's size), output and processor time of this process, if the system supports it."""
    with suppress(ImportError):  # Windows
        import resource

        size = path.stat().st_size
        with suppress(OSError, ValueError):
            # PyTorch's libraries use several GB of address space before the file is read.
            own = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (own + 6 * size + SPARE,) * 2)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 * size + (1 << 20),) * 2)
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))


def main(path: Path, folder: Path) -> int:
    """Read the file; return 0, or print one line with the reason and return 2."""
    try:
        limit(path)
        read(path, folder)
        return 0
    except Refused as error:
        print(error)
    except MemoryError:
        print("needs far more memory than its size")
    except Exception as error:  # noqa: BLE001  # a hostile file may raise anything; this process exists to contain it
        message = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        print(f"cannot be read as plain tensors: {message}")
    return 2


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
