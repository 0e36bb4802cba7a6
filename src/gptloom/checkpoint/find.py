"""Which folder of a run holds the weights, and whether it is as it was written."""

import re
import warnings
from pathlib import Path

from gptloom.errors import GptloomWarning, InputError
from gptloom.files import file_hash, read_bytes, write_text

SUMS = "SHA256SUMS"
_CURE = "give a run folder, a checkpoint folder or a bundle"
_WRITTEN_BY_US = (".json", ".safetensors", ".model")


def checkpoint_name(step: int) -> str:
    """The folder of the checkpoint after this many steps."""
    return f"step-{step:06d}"


def checkpoint_step(name: str) -> int:
    """The step that such a name tells."""
    return int(name.removeprefix("step-"))


def checkpoint_names(run: Path) -> list[str]:
    """The names of a run's checkpoints, oldest first."""
    found = [
        path.name
        for path in (run / "checkpoints").glob("step-*")
        if re.fullmatch(r"step-\d{6,}", path.name) and path.is_dir()
    ]
    return sorted(found, key=checkpoint_step)


def write_sums(folder: Path) -> None:
    """Write the SHA-256 of each file of a folder into SHA256SUMS, in the form that `sha256sum --check` reads."""
    write_text(
        folder / SUMS,
        "".join(f"{file_hash(path)}  {path.name}\n" for path in sorted(folder.iterdir()) if path.name != SUMS),
    )


def damage(folder: Path) -> str | None:
    """What is wrong with a folder that holds a SHA256SUMS, in a few words; None when every file is as it was written."""
    try:
        text = read_bytes(folder / SUMS).decode("ascii")
        found = re.fullmatch(r"(?:[0-9a-f]{64}  [\w.-]+\n)+", text)
        if not found:
            return f"{SUMS} is damaged"
        sums = {name: expected for expected, _, name in (line.partition("  ") for line in text.splitlines())}
        for path in folder.iterdir():
            if path.suffix in _WRITTEN_BY_US and path.name not in sums:
                return f"{SUMS} is damaged: it does not list {path.name}"
        for name, expected in sums.items():
            if not (folder / name).is_file():
                return f"{name} is missing"
            if file_hash(folder / name) != expected:
                return f"{name} is damaged: its SHA-256 is not the one in {SUMS}"
    except UnicodeDecodeError:
        return f"{SUMS} is damaged"
    except InputError as error:
        return f"{SUMS} is damaged: it {error.what}" if (folder / SUMS).exists() else f"{SUMS} is missing"
    except OSError as error:
        return f"it cannot be read: {error.strerror or error}"
    return None


def find_bundle(path: Path, which: str = "best") -> Path:
    """The folder with the weights: `path` itself, or a checkpoint of the run folder that `path` is; its files are checked against their sums.

    Args:
        path: a run folder, a checkpoint folder or a bundle. A bundle without SHA256SUMS is taken as it is.
        which: of a run folder: best, latest, diverged (where a step's loss or gradient was not finite), or a
            checkpoint's name.

    Raises:
        InputError: there is none, or the one that was named is damaged.

    Warns:
        GptloomWarning: best or latest is damaged, and the newest whole checkpoint is used instead.
    """
    if not path.is_dir():
        raise InputError(
            "there is no such folder" if not path.exists() else "is not a folder", where=str(path), cure=_CURE
        )
    if which == "diverged" and (path / "diverged").is_dir():
        return find_bundle(path / "diverged", "latest")
    is_checkpoint = path.parent.name == "checkpoints"
    if is_checkpoint or (path / "model.safetensors").exists() or (path / SUMS).exists():
        if problem := damage(path) if is_checkpoint or (path / SUMS).exists() else None:
            raise InputError(problem, where=str(path), cure=_whole_ones(path.parent.parent))
        return path
    names = checkpoint_names(path)
    if not names:
        raise InputError("holds no model and no checkpoints yet", where=str(path), cure=_CURE)
    if which not in ("best", "latest"):
        if which not in names:
            raise InputError(
                f"there is no checkpoint {which!r}",
                where=str(path),
                cure=f"choose best, latest or one of {', '.join(names)}",
            )
        return find_bundle(path / "checkpoints" / which)
    return _pointed(path, which, names)


def _pointed(run: Path, which: str, names: list[str]) -> Path:
    """The best checkpoint, or the newest; where it is damaged, the newest whole one."""
    name = (_read_pointer(run / "best") if which == "best" else None) or names[-1]
    problem = damage(run / "checkpoints" / name) if name in names else "it is missing"
    if problem is None:
        return run / "checkpoints" / name
    for other in reversed(names):
        if other != name and damage(run / "checkpoints" / other) is None:
            warnings.warn(
                f"{run / 'checkpoints' / name}: {problem}; {other}, the newest whole checkpoint, is used instead",
                GptloomWarning,
                stacklevel=3,
            )
            return run / "checkpoints" / other
    raise InputError(
        f"{problem}, and no other checkpoint is whole",
        where=str(run / "checkpoints" / name),
        cure="start a new run, or restore a copy",
    )


def _read_pointer(path: Path) -> str | None:
    """The name in a pointer file; None where there is no such file, or no name in it."""
    try:
        name = read_bytes(path).decode("ascii").strip() if path.exists() else None
    except (InputError, UnicodeDecodeError):
        name = ""
    if name is None:
        return None
    if re.fullmatch(r"step-\d{6,}", name):
        return name
    warnings.warn(f"{path}: does not name a checkpoint; it is passed over", GptloomWarning, stacklevel=4)
    return None


def _whole_ones(run: Path) -> str:
    whole = [name for name in checkpoint_names(run) if damage(run / "checkpoints" / name) is None]
    return f"choose a whole one: {', '.join(whole)}" if whole else "restore a copy"
