"""Finding the folder of a run that holds the weights, and checking its files against SHA256SUMS."""

import re
import warnings
from pathlib import Path

from gptloom.errors import GptloomWarning, InputError
from gptloom.files import file_hash, read_bytes, write_text

SUMS = "SHA256SUMS"
_CURE = "give a run folder, a checkpoint folder or a bundle"
_WRITTEN_BY_US = (".json", ".safetensors", ".model")


def checkpoint_name(step: int) -> str:
    """Return the folder name of the checkpoint after `step` steps."""
    return f"step-{step:06d}"


def checkpoint_step(name: str) -> int:
    """Return the step in a checkpoint's folder name."""
    return int(name.removeprefix("step-"))


def checkpoint_names(run: Path) -> list[str]:
    """Return the names of a run's checkpoints, oldest first."""
    found = [
        path.name
        for path in (run / "checkpoints").glob("step-*")
        if re.fullmatch(r"step-\d{6,}", path.name) and path.is_dir()
    ]
    return sorted(found, key=checkpoint_step)


def write_sums(folder: Path) -> None:
    """Write the SHA-256 of each file of a folder into SHA256SUMS, in the format of `sha256sum --check`."""
    write_text(
        folder / SUMS,
        "".join(f"{file_hash(path)}  {path.name}\n" for path in sorted(folder.iterdir()) if path.name != SUMS),
    )


def damage(folder: Path) -> str | None:
    """Describe the first fault of a folder with a SHA256SUMS; None if every file matches its hash."""
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
    """Return the folder with the weights, after checking its files against their hashes.

    Args:
        path: a run folder, a checkpoint folder or a bundle. A bundle without SHA256SUMS is not checked.
        which: the checkpoint of a run folder: best, latest, diverged (the state before a step whose loss or gradient
            was not finite), or a checkpoint's name.

    Raises:
        InputError: there is no such folder or checkpoint, or the named checkpoint is damaged.

    Warns:
        GptloomWarning: best or latest is damaged, and the newest intact checkpoint is used instead.
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
            raise InputError(problem, where=str(path), cure=_choose_intact(path.parent.parent))
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
    """Return the best or the newest checkpoint; if it is damaged, the newest intact one."""
    name = (_read_pointer(run / "best") if which == "best" else None) or names[-1]
    problem = damage(run / "checkpoints" / name) if name in names else "it is missing"
    if problem is None:
        return run / "checkpoints" / name
    for other in reversed(names):
        if other != name and damage(run / "checkpoints" / other) is None:
            warnings.warn(
                f"{run / 'checkpoints' / name}: {problem}; {other}, the newest intact checkpoint, is used instead",
                GptloomWarning,
                stacklevel=3,
            )
            return run / "checkpoints" / other
    raise InputError(
        f"{problem}, and no other checkpoint is intact",
        where=str(run / "checkpoints" / name),
        cure="start a new run, or restore a copy",
    )


def _read_pointer(path: Path) -> str | None:
    """Return the checkpoint name in a pointer file; None if there is no file, or no name in it."""
    try:
        name = read_bytes(path).decode("ascii").strip() if path.exists() else None
    except (InputError, UnicodeDecodeError):
        name = ""
    if name is None:
        return None
    if re.fullmatch(r"step-\d{6,}", name):
        return name
    warnings.warn(f"{path}: does not name a checkpoint; it is ignored", GptloomWarning, stacklevel=4)
    return None


def _choose_intact(run: Path) -> str:
    intact = [name for name in checkpoint_names(run) if damage(run / "checkpoints" / name) is None]
    return f"choose an intact checkpoint: {', '.join(intact)}" if intact else "restore a copy"
