"""torch.compile where it is wanted and works; one line and eager mode where it does not."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import cast

import torch
from torch import Tensor, nn

from gptloom.config import TrainConfig
from gptloom.training.schedule import Horizon

LAUNCH_BOUND = 50_000_000
"""Parameters below which a GPU waits for the CPU to launch its kernels, rather than the other way round."""


def wants_compile(config: TrainConfig, horizon: Horizon, device: torch.device) -> bool:
    """Whether to compile; `auto` does so for CUDA runs that are long enough to earn the compile time back.

    It never looks at measured times, so that the same settings always give the same bits.
    """
    if config.compile != "auto":
        return config.compile == "on"
    long = horizon.seconds >= 300.0 if horizon.seconds is not None else horizon.total >= 1000
    return device.type == "cuda" and long


def compile_mode(parameters: int, device: torch.device) -> str | None:
    """PyTorch's `mode`: for a small model on a GPU the one that replays all kernels of a pass as one CUDA graph."""
    return "reduce-overhead" if device.type == "cuda" and parameters < LAUNCH_BOUND else None


def compile_or_not(
    objective: nn.Module,
    config: TrainConfig,
    horizon: Horizon,
    device: torch.device,
    batch: tuple[Tensor, ...],
    autocast: Callable[[], AbstractContextManager[object]],
    say: Callable[[str], None],
) -> nn.Module:
    """The objective, compiled if that is wanted and trial passes succeed, forward and backward; its parameters stay the same."""
    if not wants_compile(config, horizon, device):
        return objective
    say("compiling the model; this takes a while once")
    parts = [part[: config.rows].to(device) for part in batch]
    try:
        mode = compile_mode(sum(p.numel() for p in objective.parameters()), device)
        compiled = cast(nn.Module, torch.compile(objective, mode=mode))
        for _ in range(1 if mode is None else 3):  # a graph is recorded at the second pass, and replayed from the third on
            with autocast():
                nats = compiled(*parts)[0]
            nats.backward()
    except (RuntimeError, ImportError, OSError) as error:
        say(f"note: torch.compile failed ({' '.join(str(error).split())[:120]}); training goes on without it")
        return objective
    return compiled
