"""Checkpoints: a bundle plus optimizer and state, written whole or not at all."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gptloom.checkpoint.find import checkpoint_name, checkpoint_names, write_sums
from gptloom.checkpoint.format import write_model
from gptloom.checkpoint.progress import Horizon, Progress
from gptloom.config.load import parse
from gptloom.config.run import RunConfig
from gptloom.data.tokenizers import Tokenizer
from gptloom.errors import InputError, MachineError
from gptloom.io.atomic import forget, publish, remove, replace_text, sync, write_text
from gptloom.io.read import read_text, regular_size

VERSION = 2

LONGEST_STATE = 1 << 24
"""Bytes of state.json; the plans of a run by the clock are the longest part, a hundred lines."""


@dataclass(frozen=True)
class Snapshot:
    """All that a run is at a step; training may go on while it is written.

    Attributes:
        config: the run's settings.
        tokenizer: unchanging.
        weights: copies of the parameters by name.
        optimizer: copies of the optimizer's memory by parameter.
        progress: a copy.
        horizon: a copy.
    """

    config: RunConfig
    tokenizer: Tokenizer
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    progress: Progress
    horizon: Horizon


@dataclass(frozen=True)
class State:
    """What a checkpoint holds besides the model: settings, progress, horizon, and the optimizer's tensors; at the beginning, no horizon is planned."""

    config: RunConfig
    progress: Progress
    horizon: Horizon | None
    optimizer: dict[str, Tensor]


def write_checkpoint(
    run: Path,
    snapshot: Snapshot,
    *,
    files: Mapping[str, str] | None = None,
    tensors: Mapping[str, dict[str, Tensor]] | None = None,
) -> Path:
    """Write checkpoints/step-N of a run into a temporary folder, sync it, and rename it.

    Args:
        run: the run folder.
        snapshot: what is written.
        files: other texts to write beside it, by name.
        tensors: other tensors to write beside it, by file name.

    Raises:
        MachineError: the disk did not take it; what was there before is untouched, and nothing of this one is left.
    """
    step = snapshot.progress.step
    folder = run / "checkpoints"
    final, temporary = folder / checkpoint_name(step), folder / f".writing-{step:06d}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        write_model(temporary, snapshot.config.model, snapshot.weights)
        snapshot.tokenizer.save(temporary)
        state = {
            "version": VERSION,
            "settings": snapshot.config.model_dump(mode="json"),
            "progress": asdict(snapshot.progress),
            "horizon": asdict(snapshot.horizon),
        }
        write_text(temporary / "state.json", json.dumps(state, indent=2) + "\n")
        for name, text in (files or {}).items():
            write_text(temporary / name, text)
        for name, content in ({"optimizer.safetensors": snapshot.optimizer} | dict(tensors or {})).items():
            save_file(content, temporary / name)
        write_sums(temporary)
        # What was logged up to this step must not be younger on the disk than the checkpoint that goes on from it.
        for log in (run / "metrics.jsonl", run / "samples.jsonl"):
            if log.exists():
                sync(log)
        publish(temporary, final)
        replace_text(run / "latest", final.name + "\n")
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        reason = getattr(error, "strerror", None) or error
        raise MachineError(
            f"the checkpoint could not be written: {reason}",
            where=str(final),
            cure="free some space, then `gptloom resume`",
        ) from error
    return final


def read_checkpoint(path: Path) -> State:
    """The state of a checkpoint that `find_bundle` has found whole.

    Raises:
        InputError: a file does not hold what a checkpoint of this version holds.
    """
    cure = "resume from another checkpoint with --checkpoint"
    try:
        state = json.loads(read_text(path / "state.json", limit=LONGEST_STATE, cure=cure))
        if state["version"] != VERSION:
            raise InputError(
                f"was written by another version of gptloom (state {state['version']}, not {VERSION})",
                where=str(path),
                cure="start a new run",
            )
        regular_size(path / "optimizer.safetensors", cure=cure)
        optimizer = load_file(path / "optimizer.safetensors")
        plans = [(int(step), int(total)) for step, total in state["horizon"]["plans"]]
        progress, horizon = _build(Progress, state["progress"]), _build(Horizon, state["horizon"] | {"plans": plans})
        settings = state["settings"]
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"is not a whole checkpoint: {error}", where=str(path), cure=cure) from None
    return State(parse(RunConfig, settings, where=str(path / "state.json")), progress, horizon, optimizer)


def prune(run: Path, keep: int, written: str, best: str) -> None:
    """Remove all checkpoints but the newest `keep`, the best, and the one just written, which is whole.

    Those that were set aside belong to a part of the run that was given up when an older one was resumed from; now they
    go.
    """
    for name in checkpoint_names(run)[:-keep]:
        if name not in (written, best):
            remove(run / "checkpoints" / name)
    forget(run / "checkpoints")


def _build(cls: Any, values: dict[str, Any]) -> Any:
    """A dataclass from exactly its own fields."""
    names = {field.name for field in fields(cls)}
    if set(values) != names:
        raise ValueError(f"state.json does not hold {', '.join(sorted(names ^ set(values)))}")
    return cls(**values)
