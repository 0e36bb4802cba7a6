"""What a trainer works on, and what it leaves to others: where batches come from, how state is kept, who else takes part."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from gptloom.checkpoint.manager import CheckpointManager
from gptloom.checkpoint.state import Optimizer
from gptloom.distributed import ProcessGroup
from gptloom.generate.task import Score

End = Literal["finished", "patience", "stopped"]


class Interrupted(BaseException):
    """A signal asks to stop, in the middle of something that can be given up without harm.

    Not an Exception: nobody else may swallow it.
    """


@runtime_checkable
class Source(Protocol):
    """Where batches come from."""

    def batch(self, step: int) -> tuple[Tensor, ...]:
        """What the objective takes at a step, the targets last; always the same for the same step."""


@dataclass(frozen=True)
class Job:
    """What a trainer works on.

    Attributes:
        objective: a batch to (summed nats, count); possibly compiled.
        optimizer: already holding the objective's parameters.
        source: this rank's batches by step.
        evaluate: the validation score, without drawing anything random.
        autocast: a fresh context for each forward pass.
        device: where batches go.
        seed: dropout is a function of this, the step and the rank.
        checkpoints: keeps the state; None where a training can simply be repeated.
        group: the processes that train together.
        interrupted: whether a signal has come that asks to stop.
        validation: tokens that `evaluate` reads, to tell how long it will take.
        epoch: steps in which the source gives all it has once; 0 where that is not known.
        say: shows a line to the user.
    """

    objective: nn.Module
    optimizer: Optimizer
    source: Source
    evaluate: Callable[[], Score]
    autocast: Callable[[], AbstractContextManager[Any]]
    device: torch.device
    seed: int
    checkpoints: CheckpointManager | None = None
    group: ProcessGroup = field(default_factory=ProcessGroup)
    interrupted: Callable[[], bool] = lambda: False
    validation: int = 0
    epoch: int = 0
    say: Callable[[str], None] | None = None
