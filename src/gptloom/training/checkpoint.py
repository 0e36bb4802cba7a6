"""Checkpoints: a bundle plus optimizer and state, written whole or not at all."""

import hashlib
import json
import os
import shutil
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gptloom.bundle import Bundle
from gptloom.errors import InputError, MachineError
from gptloom.storage import checkpoint_names
from gptloom.training.schedule import Horizon
from gptloom.training.trainer import Progress

SUMS = "SHA256SUMS"


def write_checkpoint(run: Path, bundle: Bundle, optimizer: dict[str, Tensor], progress: Progress, horizon: Horizon) -> Path:
    """Write checkpoints/step-N of a run into a temporary folder, sync it, and rename it.

    Raises:
        MachineError: the disk did not take it; what was there before is untouched.
    """
    folder = run / "checkpoints"
    final, temporary = folder / checkpoint_name(progress.step), folder / f".writing-{progress.step:06d}"
    try:
        folder.mkdir(exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        bundle.save(temporary)
        save_file(optimizer, temporary / "optimizer.safetensors")
        state = {"version": 1, "progress": asdict(progress), "horizon": asdict(horizon)}
        (temporary / "state.json").write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
        sums = [f"{file_hash(path)}  {path.name}\n" for path in sorted(temporary.iterdir())]
        (temporary / SUMS).write_text("".join(sums), encoding="utf-8")
        for path in (*temporary.iterdir(), temporary):
            sync(path)
        if final.exists():
            shutil.rmtree(final)
        temporary.rename(final)
        sync(folder)
        point(run / "latest", final.name)
    except OSError as error:
        raise MachineError(
            f"the checkpoint could not be written: {error.strerror or error}", where=str(final), cure="free some space, then `gptloom resume`"
        ) from error
    return final


def read_checkpoint(path: Path) -> tuple[Progress, Horizon, dict[str, Tensor]]:
    """The state and the optimizer's tensors of a checkpoint, its files checked against their sums.

    Raises:
        InputError: a file is missing or has changed.
    """
    try:
        for line in (path / SUMS).read_text(encoding="utf-8").splitlines():
            expected, _, name = line.partition("  ")
            if file_hash(path / Path(name).name) != expected:
                raise InputError(
                    f"{name} is damaged: its SHA-256 is not the one in {SUMS}", where=str(path), cure="resume from an older checkpoint with --checkpoint"
                )
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        optimizer = load_file(path / "optimizer.safetensors")
        progress, horizon = _build(Progress, state["progress"]), _build(Horizon, state["horizon"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"is not a whole checkpoint: {error}", where=str(path), cure="resume from an older checkpoint with --checkpoint") from None
    horizon.plans = [(int(step), int(total)) for step, total in horizon.plans]
    return progress, horizon, optimizer


def prune(run: Path, keep: int, spared: set[str]) -> None:
    """Remove all checkpoints but the newest `keep` and those to be spared (the best, and the one just written)."""
    for name in list(checkpoint_names(run))[:-keep]:
        if name not in spared:
            shutil.rmtree(run / "checkpoints" / name, ignore_errors=True)


def checkpoint_name(step: int) -> str:
    """The folder of the checkpoint after this many steps."""
    return f"step-{step:06d}"


def point(path: Path, name: str) -> None:
    """Make a pointer file (latest, best) name a checkpoint, in one atomic replacement."""
    temporary = path.with_name(f".{path.name}.writing")
    temporary.write_text(name + "\n", encoding="utf-8")
    sync(temporary)
    temporary.replace(path)


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Force a file or folder to the disk (folders cannot be synced on Windows, which writes them through)."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() or os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _build(cls: Any, values: dict[str, Any]) -> Any:
    """A dataclass from exactly its own fields."""
    names = {field.name for field in fields(cls)}
    if set(values) != names:
        raise ValueError(f"state.json does not hold {', '.join(sorted(names ^ set(values)))}")
    return cls(**values)
