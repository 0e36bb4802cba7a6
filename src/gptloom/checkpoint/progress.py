"""How far a run is: what a checkpoint must remember besides weights and optimizer."""

from dataclasses import dataclass, field


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
