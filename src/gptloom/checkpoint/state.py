"""The state of a run and its checkpoints: a bundle plus optimizer.safetensors and state.json, written atomically.

The optimizer's state is stored as named tensors, KIND/PARAMETER. `Progress` and `Horizon` are the rest of the state.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from gptloom.checkpoint.format import (
    checkpoint_name,
    checkpoint_names,
    read_pointer,
    write_model,
    write_sums,
    write_tensors,
)
from gptloom.config.load import parse
from gptloom.config.run import RunConfig
from gptloom.data.tokenizers import Tokenizer
from gptloom.errors import InputError, MachineError, cure_for
from gptloom.fast.flat import unfit
from gptloom.files import forget, publish, read_text, regular_size, remove, replace_text, sync, write_text


@dataclass
class Progress:
    """Progress of a run.

    Attributes:
        step: optimizer steps done, including skipped steps.
        tokens: targets trained on.
        seconds: training time.
        best_loss: lowest validation loss.
        best_step: its step; None if it is that of a part of the run that was given up (checkpoint kept-N).
        stale: evaluations since `best_step`.
        rows: rows per forward pass that fit into memory.
        last_loss: validation loss at the latest evaluation.
        last_evaluated: step of the latest evaluation.
        skipped: consecutive steps skipped, up to now, because a loss or a gradient was not finite.
        rollbacks: number of returns to a checkpoint for that reason; each one halves the learning rate.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best_loss: float | None = None
    best_step: int | None = None
    stale: int = 0
    rows: int = 0
    last_loss: float | None = None
    last_evaluated: int | None = None
    skipped: int = 0
    rollbacks: int = 0


@dataclass
class Horizon:
    """The number of steps of a run: fixed, or planned repeatedly from the rest of a time budget.

    The plans are kept, because the learning rates follow from them.

    Attributes:
        seconds: the time budget; None if `total` is fixed.
        total: total number of steps, by the latest plan.
        plans: (first step, total) of every plan made under a time budget.
    """

    seconds: float | None
    total: int
    plans: list[tuple[int, int]] = field(default_factory=list)

    def plan(self, step: int, elapsed: float, per_step: float) -> None:
        """Plan `total` for the rest of the budget; does nothing without a budget.

        Args:
            step: steps done.
            elapsed: seconds used.
            per_step: seconds per step.
        """
        if self.seconds is None:
            return
        total = step + max(0, round((self.seconds - elapsed) / max(per_step, 1e-9)))
        self.total = max(1, total)
        self.plans.append((step, self.total))

    def due(self, step: int) -> bool:
        """Whether to plan again: after 1, 2, 4, 8 ... steps, and a hundred times in the run."""
        if self.seconds is None or step == 0:
            return False
        return step % max(1, self.total // 100) == 0 or step & (step - 1) == 0


@dataclass(frozen=True)
class Divergence:
    """A step that was not applied because its loss or gradient was not finite.

    Attributes:
        step: optimizer steps done before it, which is also the number of its batch.
        loss: training loss in nats per token.
        gradient_norm: norm of all gradients together.
        lr: learning rate of the step.
        action: the reaction: stop, rollback or skip.
    """

    step: int
    loss: float
    gradient_norm: float
    lr: float
    action: str

    def __str__(self) -> str:
        """Describe the step in a sentence."""
        rate = f"at learning rate {self.lr:.3g}"
        return f"the training loss is {self.loss} and the gradient's norm {self.gradient_norm} {rate}"


@runtime_checkable
class Optimizer(Protocol):
    """The interface of an optimizer: the part of `torch.optim.Optimizer` that training uses.

    gptloom's optimizers do not subclass `torch.optim.Optimizer`, because constructing one imports PyTorch's compiler
    and SymPy (most of a second).

    Attributes:
        param_groups: dictionaries with "params" (parameters), "param_names" (their names in the model), "lr" and
            "weight_decay".
    """

    param_groups: list[dict[str, Any]]

    def state_dict(self) -> dict[str, Any]:
        """Return {"state": {number: {kind: value}}, "param_groups": [...]}, numbered in the order of the groups."""

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Load a state; clears the previous one."""

    def step(self) -> Any:
        """Apply the gradients."""

    def zero_grad(self) -> None:
        """Reset the gradients."""


def parameter_names(optimizer: Optimizer) -> list[str]:
    """Return the names of an optimizer's parameters, in the order of the numbers in its state."""
    return [name for group in optimizer.param_groups for name in group["param_names"]]


def state_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """Return CPU copies of an optimizer's state by KIND/PARAMETER, such as "exp_avg/head.weight"."""
    names = parameter_names(optimizer)
    return {
        f"{kind}/{names[number]}": torch.as_tensor(value).to("cpu", copy=True).contiguous()
        for number, memory in optimizer.state_dict()["state"].items()
        for kind, value in memory.items()
        if value is not None
    }


def load_state_tensors(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Load the result of `state_tensors` into an optimizer of the same parameters; clears its previous state.

    Raises:
        ValueError: a tensor belongs to no parameter of the optimizer, or has a different shape.
    """
    numbers = {name: number for number, name in enumerate(parameter_names(optimizer))}
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        kind, _, name = key.partition("/")
        if name not in numbers:
            raise unfit(key)
        state.setdefault(numbers[name], {})[kind] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


VERSION = 2

LONGEST_STATE = 1 << 24
"""Maximum bytes of state.json; its longest part is the plans under a time budget, a hundred lines."""


@dataclass(frozen=True)
class Snapshot:
    """A copy of the state of a run at a step; training may continue while it is written.

    Attributes:
        config: the run's settings.
        tokenizer: the tokenizer, not copied (it does not change).
        weights: copies of the parameters by name.
        optimizer: copies of the optimizer's state by KIND/PARAMETER.
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
    """The contents of a checkpoint besides the model: settings, progress, horizon and the optimizer's tensors.

    A run that has not started has no horizon (None).
    """

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
    """Write checkpoints/step-N of a run: into a temporary folder first, which is synced and then renamed.

    Args:
        run: the run folder.
        snapshot: the state to write.
        files: additional text files, by file name.
        tensors: additional safetensors files, by file name.

    Returns:
        The checkpoint folder.

    Raises:
        MachineError: the disk refused the write; earlier checkpoints are untouched, and no part of this one is left.
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
            write_tensors(content, temporary / name)
        write_sums(temporary)
        # Sync the logs first: a run that resumes from this checkpoint needs all lines up to its step.
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
            cure=cure_for(error, "free some space, then `gptloom resume`"),
        ) from error
    return final


def read_checkpoint(path: Path) -> State:
    """Read the state of a checkpoint that `find_bundle` has checked.

    Raises:
        InputError: a file does not have the contents of a checkpoint of this version.
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
        raise InputError(f"is not a valid checkpoint: {error}", where=str(path), cure=cure) from None
    return State(parse(RunConfig, settings, where=str(path / "state.json")), progress, horizon, optimizer)


def keep(run: Path, name: str) -> str:
    """Copy the best checkpoint, whose own folder may be deleted, to kept-N, and point `best` to it.

    Args:
        run: the run folder.
        name: the checkpoint, step-N.

    Returns:
        kept-N.

    Raises:
        OSError: the copy cannot be written.
    """
    folder, kept = run / "checkpoints", name.replace("step", "kept")
    temporary = folder / f".writing-{kept}"
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(folder / name, temporary)
    publish(temporary, folder / kept)
    replace_text(run / "best", kept + "\n")
    return kept


def prune(run: Path, newest: int, written: str, best: str) -> None:
    """Remove all checkpoints except the newest `keep`, the best, and the one just written.

    Also removes a kept best that is no longer the best, and the checkpoints that were set aside when the run resumed
    from an older one.

    Args:
        run: the run folder.
        newest: number of newest checkpoints to keep.
        written: name of the checkpoint just written, which is complete.
        best: name of the best checkpoint.
    """
    for name in checkpoint_names(run)[:-newest]:
        if name not in (written, best):
            remove(run / "checkpoints" / name)
    pointed = read_pointer(run / "best")
    for folder in (run / "checkpoints").glob("kept-*"):
        if folder.name != pointed:
            remove(folder)
    forget(run / "checkpoints")


def _build(cls: Any, values: dict[str, Any]) -> Any:
    """Build a dataclass; ValueError if the keys are not exactly its fields."""
    names = {field.name for field in fields(cls)}
    if set(values) != names:
        raise ValueError(f"state.json does not hold {', '.join(sorted(names ^ set(values)))}")
    return cls(**values)
