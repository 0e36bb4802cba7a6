"""`setup` makes a `Trainer` from a configuration: the one way for runs, trials, benchmarks, checks and reproductions."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from gptloom.checkpoint.manager import CheckpointManager
from gptloom.checkpoint.state import Horizon, Optimizer, Progress, load_state_tensors
from gptloom.config.run import RunConfig, TrainConfig
from gptloom.data.tokenizers import Tokenizer
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
    run: Path | None = None,
    tokenizer: Tokenizer | None = None,
    interrupted: Callable[[], bool] = lambda: False,
    validation_tokens: int = 0,
    epoch_steps: int = 0,
    reseed: bool = True,
    say: Callable[[str], None] | None = None,
) -> Trainer:
    """Make a trainer. Nothing is computed yet, except for trial passes where the model is compiled.

    Args:
        config: all settings.
        model: on its device; its mode (train or eval) is not changed.
        batches: this rank's batches; see `Task.training_batches`.
        horizon: the number of steps; see `schedule.make_horizon`.
        evaluate: measures the validation loss.
        optimizer: holds the model's parameters (default: the one that `config` names).
        optimizer_state: the optimizer's tensors from a checkpoint.
        progress: how far the training is, from a checkpoint.
        group: the ranks that train together.
        callbacks: called by the first rank.
        run: a run folder for checkpoints; they then need the `tokenizer`.
        tokenizer: written with each checkpoint.
        interrupted: whether a signal asks to stop.
        validation_tokens: the number that `evaluate` reads, to estimate its time.
        epoch_steps: steps per epoch; 0 if unknown.
        reseed: whether dropout is a function of (seed, step, rank); else it continues torch's random state.
        say: prints messages for the user.

    Raises:
        ConfigError: the optimizer refuses the model's parameters or the settings.
        InputError: `optimizer_state` does not belong to this model and optimizer.
    """
    train, device = config.train, model.device
    progress, group = progress or Progress(), group or ProcessGroup()
    optimizer = optimizer or make_optimizer(model, train, group)
    try:
        load_state_tensors(optimizer, optimizer_state or {})
    except ValueError as error:
        cure = "resume from another checkpoint with --checkpoint"
        raise InputError(str(error), where=str(run or "the optimizer's state"), cure=cure) from None
    context = partial(autocast, device, pick_precision(train.precision, device))
    objective: nn.Module = Objective(model, train.label_smoothing)
    if wants_compile(train, horizon, device):
        objective = compile_or_not(objective, batches.batch(0), train.rows, context, say or print)
    checkpoints = None
    if run is not None and tokenizer is not None:
        checkpoints = CheckpointManager(
            run,
            config=config,
            model=model,
            tokenizer=tokenizer,
            optimizer=optimizer,
            progress=progress,
            horizon=horizon,
            say=say or print,
        )
    return Trainer(
        train,
        objective=objective,
        optimizer=optimizer,
        batches=batches,
        evaluate=evaluate,
        device=device,
        seed=config.seed if reseed else None,
        horizon=horizon,
        progress=progress,
        autocast=context,
        group=group,
        callbacks=callbacks if group.rank == 0 else (),
        checkpoints=checkpoints,
        interrupted=interrupted,
        validation_tokens=validation_tokens,
        epoch_steps=epoch_steps,
        say=say,
    )


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
