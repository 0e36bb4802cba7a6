"""The process that opens a foreign .pt file: `python -m gptloom.interop.pt_reader FILE FOLDER`.

A .pt file is a zip archive with a pickle in it. torch.load(weights_only=True) takes only tensors and plain values from
it and runs nothing; should it nevertheless be led astray, it is in a process of its own, whose memory, time and output
are bounded, and which hands over nothing but FOLDER/tensors.safetensors and FOLDER/about.json. What it says about a
failure is one line on standard output.
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
"""Bytes of memory beyond a multiple of the file's size."""

SECONDS = 120
"""Of processor time."""

LONGEST_PICKLE = 1 << 26
"""Bytes of the part of the archive that names the tensors."""


class Refused(Exception):
    """The file is not read; says why."""


def read(path: Path, folder: Path) -> None:
    """Take the tensors and the plain settings out of a .pt file.

    Args:
        path: the file.
        folder: an empty one, for what is found.

    Raises:
        Refused: the file is not what torch.save writes, or holds something other than tensors and plain values, or no
            tensors.
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
    """What torch.load makes of it; Refused when that would be more than tensors and plain values."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        # The class is pickle's own, and importing that only to name it would be a poor joke. Its message advises to run
        # the file.
        if type(error).__name__ != "UnpicklingError":
            raise
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise Refused(f"holds more than tensors and plain values{f': it calls {found[1]}' if found else ''}") from None


def _check_archive(path: Path) -> None:
    """See that nothing in the archive can grow: torch.save stores, it does not compress."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        raise Refused("is not a .pt file as torch.save has written it since PyTorch 1.6, or not a whole one") from None
    if any(one.compress_type != zipfile.ZIP_STORED or one.file_size != one.compress_size for one in entries):
        raise Refused("is compressed, which torch.save never does")
    if sum(one.file_size for one in entries) > path.stat().st_size:
        raise Refused("has parts that overlap")
    if any(one.filename.endswith("data.pkl") and one.file_size > LONGEST_PICKLE for one in entries):
        raise Refused("has a longer list of contents than any model")


def _checked(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of ordinary numbers that has as many as its storage."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex():
        raise Refused(f"{name[:100]!r} is no dense tensor of real numbers")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise Refused(f"{name[:100]!r} claims more numbers than it has")
    return tensor.detach()


def limit(path: Path) -> None:
    """Bound this process, where the system can: memory by the file's size, and processor time."""
    with suppress(ImportError):  # Windows
        import resource

        size = path.stat().st_size
        with suppress(OSError, ValueError):
            # PyTorch's own libraries take several GB of addresses before anything is read.
            own = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (own + 6 * size + SPARE,) * 2)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 * size + (1 << 20),) * 2)
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))


def main(path: Path, folder: Path) -> int:
    """Read; 0, or 2 and a line that says why not."""
    try:
        limit(path)
        read(path, folder)
        return 0
    except Refused as error:
        print(error)
    except MemoryError:
        print("takes far more memory than its size")
    except Exception as error:  # noqa: BLE001  # what a hostile file leads to is not foreseen, and this process is there to contain it
        print(
            f"cannot be read as plain tensors: {str(error).splitlines()[0][:200] if str(error) else type(error).__name__}"
        )
    return 2


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
