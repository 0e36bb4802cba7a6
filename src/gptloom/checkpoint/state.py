"""How far a run is: what a checkpoint must remember besides weights and optimizer.

An optimizer's memory as named tensors, which is how optimizer.safetensors holds it.

Checkpoints: a bundle plus optimizer and state, written whole or not at all.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gptloom.checkpoint.find import checkpoint_name, checkpoint_names, write_sums
from gptloom.checkpoint.format import write_model
from gptloom.config.load import parse
from gptloom.config.run import RunConfig
from gptloom.data.tokenizers import Tokenizer
from gptloom.errors import InputError, MachineError
from gptloom.fast.flat import unfit
from gptloom.files import forget, publish, read_text, regular_size, remove, replace_text, sync, write_text


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        step: optimizer steps done, skipped ones included.
        tokens: targets trained on.
        seconds: training time.
        best_loss: lowest validation loss.
        best_step: its step.
        stale: evaluations since then.
        rows: sequences per forward pass, as memory allowed.
        last_loss: validation loss at the latest evaluation.
        last_evaluated: the step of the latest evaluation.
        skipped: steps skipped in a row, up to now, because a loss or a gradient was not finite.
        rollbacks: how often the run has gone back to a checkpoint for that reason; each time the learning rate is
            halved.
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
    """The number of steps of a run. It is known from the start, or planned from a time budget as that is used up.

    Each plan is kept with the step from which it holds, so that the learning rates can be told from the plans.

    Attributes:
        seconds: the time budget, or None when `total` is simply the answer.
        total: steps in all, by the latest plan.
        plans: (step, total) for every plan made under a time budget.
    """

    seconds: float | None
    total: int
    plans: list[tuple[int, int]] = field(default_factory=list)

    def plan(self, step: int, elapsed: float, per_step: float) -> None:
        """Spend what is left of the budget at this pace (seconds a step)."""
        if self.seconds is None:
            return
        total = step + max(0, round((self.seconds - elapsed) / max(per_step, 1e-9)))
        self.total = max(1, total)
        self.plans.append((step, self.total))

    def due(self, step: int) -> bool:
        """Whether it is time to plan again: after 1, 2, 4, 8 ... steps, and a hundred times in the run."""
        if self.seconds is None or step == 0:
            return False
        return step % max(1, self.total // 100) == 0 or step & (step - 1) == 0


@dataclass(frozen=True)
class Divergence:
    """A step whose loss or gradient was not finite; it was not applied.

    Attributes:
        step: optimizer steps done before it; the batch is that of this number.
        loss: training loss in nats per token.
        gradient_norm: of all parameters together.
        lr: the learning rate it would have been applied with.
        action: what was done: stop, rollback or skip.
    """

    step: int
    loss: float
    gradient_norm: float
    lr: float
    action: str

    def __str__(self) -> str:
        """In a sentence."""
        rate = f"at learning rate {self.lr:.3g}"
        return f"the training loss is {self.loss} and the gradient's norm {self.gradient_norm} {rate}"


@runtime_checkable
class Optimizer(Protocol):
    """What gptloom asks of an optimizer: the part of `torch.optim.Optimizer` that training needs.

    gptloom's own optimizers answer to it without being a `torch.optim.Optimizer`, because to construct one loads
    PyTorch's compiler and SymPy, most of a second before the first step.

    Attributes:
        param_groups: dictionaries with "params" (parameters), "param_names" (their names in the model), "lr" and
            "weight_decay".
    """

    param_groups: list[dict[str, Any]]

    def state_dict(self) -> dict[str, Any]:
        """The memory: {"state": {number: {kind: value}}, "param_groups": [...]}, numbered in the groups' order."""

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Put such a memory back, and forget everything else."""

    def step(self) -> Any:
        """Apply the gradients."""

    def zero_grad(self) -> None:
        """Begin a new sum of gradients."""


def parameter_names(optimizer: Optimizer) -> list[str]:
    """The names of an optimizer's parameters in the order in which its state numbers them."""
    return [name for group in optimizer.param_groups for name in group["param_names"]]


def state_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """Copies of an optimizer's memory in the CPU's memory, as KIND/NAME, such as "exp_avg/head.weight"."""
    names = parameter_names(optimizer)
    return {
        f"{kind}/{names[number]}": torch.as_tensor(value).to("cpu", copy=True).contiguous()
        for number, memory in optimizer.state_dict()["state"].items()
        for kind, value in memory.items()
        if value is not None
    }


def load_state_tensors(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put what `state_tensors` gave back into an optimizer for the same parameters, and nothing else.

    Raises:
        ValueError: a tensor belongs to no parameter of the optimizer, or has another shape.
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
