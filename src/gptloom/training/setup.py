"""`setup` makes a `Trainer` from a configuration, for runs, trials, benchmarks, checks and reproductions alike."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from gptloom.checkpoint.manager import CheckpointManager
from gptloom.checkpoint.state import Horizon, Optimizer, Progress, load_state_tensors
from gptloom.config.run import RunConfig, TrainConfig
from gptloom.devices import autocast, pick_precision
from gptloom.distributed import ProcessGroup
from gptloom.errors import InputError
from gptloom.generate.task import Score
from gptloom.model.base import LanguageModel
from gptloom.model.loss import Objective
from gptloom.training.callbacks import Callback
from gptloom.training.optim import make_optimizer
from gptloom.training.trainer import Source, Trainer

LAUNCH_BOUND = 50_000_000
"""Number of parameters below which a GPU waits for the CPU to launch its kernels."""


def setup(
    config: RunConfig,
    *,
    model: LanguageModel,
    batches: Source,
    horizon: Horizon,
    evaluate: Callable[[], Score] = lambda: Score(0.0, 1),
    optimizer: Optimizer | None = None,
    optimizer_state: Mapping[str, Tensor] | None = None,
    progress: Progress | None = None,
    group: ProcessGroup | None = None,
    callbacks: Sequence[Callback] = (),
    checkpoints: Callable[..., CheckpointManager] | None = None,
    interrupted: Callable[[], bool] = lambda: False,
    validation_tokens: int = 0,
    epoch_steps: int = 0,
    reseed: bool = True,
    say: Callable[[str], None] | None = None,
) -> Trainer:
    """Make a trainer. Nothing is computed yet, except for trial passes if the model is compiled.

    The arguments are those of `Trainer`, and: `config` (all settings), `model` (on its device; its mode is kept),
    `optimizer` (default: the one that `config` names), `optimizer_state` (its tensors from a checkpoint),
    `checkpoints` (makes the manager of optimizer, progress and horizon), `reseed` (False: dropout continues torch's
    random state).

    Raises:
        ConfigError: the optimizer refuses the model's parameters or the settings.
        InputError: `optimizer_state` does not belong to this model and optimizer.
    """
    progress, group = progress or Progress(), group or ProcessGroup()
    optimizer = _load(optimizer or make_optimizer(model, config.train, group), optimizer_state or {})
    context = partial(autocast, model.device, pick_precision(config.train.precision, model.device))
    objective: nn.Module = Objective.from_config(model, config.train)
    if wants_compile(config.train, horizon, model.device):
        objective = compile_or_not(objective, batches.batch(0), config.train.rows, context, say or print)
    return Trainer(
        config.train,
        objective=objective,
        optimizer=optimizer,
        batches=batches,
        evaluate=evaluate,
        device=model.device,
        seed=config.seed if reseed else None,
        horizon=horizon,
        progress=progress,
        autocast=context,
        group=group,
        callbacks=callbacks if group.rank == 0 else (),
        checkpoints=checkpoints and checkpoints(optimizer=optimizer, progress=progress, horizon=horizon),
        interrupted=interrupted,
        validation_tokens=validation_tokens,
        epoch_steps=epoch_steps,
        say=say,
    )


def _load(optimizer: Optimizer, state: Mapping[str, Tensor]) -> Optimizer:
    """Load an optimizer's tensors, and return it."""
    try:
        load_state_tensors(optimizer, state)
    except ValueError as error:
        cure = "resume from another checkpoint with --checkpoint"
        raise InputError(str(error), where="the checkpoint", cure=cure) from None
    return optimizer


def wants_compile(config: TrainConfig, horizon: Horizon, device: torch.device) -> bool:
    """Whether to use torch.compile; `auto` does for CUDA runs that are long enough to regain the time it takes.

    The decision does not depend on measured times, so the same settings always give the same bits.
    """
    if config.compile != "auto":
        return config.compile == "on"
    long = horizon.seconds >= 300.0 if horizon.seconds is not None else horizon.total >= 1000
    return device.type == "cuda" and long


def compile_mode(parameters: int, device: torch.device) -> str | None:
    """PyTorch's `mode`: for a small model on a GPU, the one that replays the kernels of a pass as one CUDA graph."""
    return "reduce-overhead" if device.type == "cuda" and parameters < LAUNCH_BOUND else None


def compile_or_not(
    objective: nn.Module,
    batch: tuple[Tensor, ...],
    rows: int,
    autocast: Callable[[], AbstractContextManager[object]],
    say: Callable[[str], None],
) -> nn.Module:
    """Return the objective compiled, if trial passes over the first `rows` rows of a batch succeed; else itself."""
    parameters = list(objective.parameters())
    device = parameters[0].device
    say("compiling the model; this takes a while once")
    parts = [part[:rows].to(device) for part in batch]
    try:
        mode = compile_mode(sum(p.numel() for p in parameters), device)
        compiled = cast(nn.Module, torch.compile(objective, mode=mode))
        # A CUDA graph is recorded in the second pass and replayed from the third.
        for _ in range(1 if mode is None else 3):
            with autocast():
                nats = compiled(*parts)[0]
            nats.backward()
    except (RuntimeError, ImportError, OSError) as error:
        say(f"note: torch.compile failed ({' '.join(str(error).split())[:120]}); training continues without it")
        return objective
    return compiled
