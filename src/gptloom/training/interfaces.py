"""What a trainer works on, and what it leaves to others: where batches come from, how state is kept, who else takes part."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from gptloom.generate.evaluate import Score

End = Literal["finished", "patience", "stopped"]


class Interrupted(BaseException):
    """A signal asks to stop, in the middle of something that can be given up without harm.

    Not an Exception: nobody else may swallow it.
    """


@dataclass
class Progress:
    """How far a run is: all that a checkpoint must remember besides weights and optimizer.

    Attributes:
        step: optimizer steps done, passed-over ones included.
        tokens: targets trained on.
        seconds: training time.
        best_loss: lowest validation loss.
        best_step: its step.
        stale: evaluations since then.
        rows: sequences per forward pass, as memory allowed.
        last_loss: validation loss at the latest evaluation.
        last_evaluated: the step of the latest evaluation.
        skipped: steps passed over in a row, up to now, because a loss or gradient was not finite.
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
        return f"the training loss is {self.loss} and the gradient's norm {self.gradient_norm} at learning rate {self.lr:.3g}"


@runtime_checkable
class Source(Protocol):
    """Where batches come from."""

    def batch(self, step: int) -> tuple[Tensor, ...]:
        """What the objective takes at a step, the targets last; always the same for the same step."""


class Optimizer(ABC):
    """What the trainer asks of an optimizer.

    Every one of its parameters has a peak rate of its own, and all follow one schedule.
    """

    @property
    @abstractmethod
    def decays(self) -> dict[str, float]:
        """The weight decay of every parameter that it trains, by their names in the model."""

    @abstractmethod
    def set_rate(self, share: float) -> None:
        """Use this share of each peak rate from now on."""

    @abstractmethod
    def zero_grad(self) -> None:
        """Begin a new sum of gradients."""

    @abstractmethod
    def gradients(self) -> list[Tensor]:
        """The sums of gradients so far, laid out in few tensors, which may be scaled in place."""

    @abstractmethod
    def reduce(self) -> None:
        """Make them those of all ranks together."""

    @abstractmethod
    def step(self) -> None:
        """Apply them."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Copies of all that it remembers, as KIND/NAME of the parameter, in the CPU's memory."""

    @abstractmethod
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put `tensors()` back, and nothing else; ValueError where one fits no parameter."""


class Keeper:
    """Keeps a training's state. This one keeps nothing, as suits a training that can be repeated."""

    def save(self, improved: bool) -> None:
        """Begin to write a checkpoint of the present state, told whether it is the best so far; it exists when `saved` says so."""

    def saved(self, *, wait: bool = False) -> Sequence[tuple[int, Path]]:
        """Step and folder of each checkpoint that has come to exist since the last call, the one being written included if it is waited for."""
        return ()

    def settle(self) -> Sequence[tuple[int, Path]]:
        """At the end: all that was left to save is saved, or MachineError."""
        return ()

    def rollback(self) -> Progress | None:
        """Bring weights and optimizer back to the latest checkpoint, and say where that was; None where there is none."""
        return None

    def keep_evidence(self, divergence: Divergence, batch: tuple[Tensor, ...]) -> Path | None:
        """Keep what is needed to replay a step that was not applied; says where."""
        return None


class Ranks:
    """The processes that train together; here, one alone."""

    rank = 0
    world = 1

    def agree(self, *values: int) -> tuple[int, ...]:
        """The first rank's values, on every rank."""
        return values

    def add(self, *tensors: Tensor) -> None:
        """Replace each tensor by its sum over the ranks, the same bits on every rank."""


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
        keeper: keeps the state.
        ranks: who else trains.
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
    keeper: Keeper = field(default_factory=Keeper)
    ranks: Ranks = field(default_factory=Ranks)
    interrupted: Callable[[], bool] = lambda: False
    validation: int = 0
    epoch: int = 0
    say: Callable[[str], None] | None = None
