"""The learning rate at a step, and how many steps there will be when the clock decides."""

import math
from dataclasses import dataclass, field

from gptloom.config.run import TrainConfig


def learning_rate(config: TrainConfig, step: int, total: int) -> float:
    """`rate_share` of `learning_rate`."""
    return config.learning_rate * rate_share(config, step, total)


def rate_share(config: TrainConfig, step: int, total: int) -> float:
    """The share of every peak rate at step `step` (from 0) of `total`: a linear warm-up, then the schedule down to its last value.

    The warm-up takes at most half the run. cosine is Loshchilov and Hutter 2017 without restarts; wsd is warm-up,
    stable, decay (Hu et al. 2024, section 4), its decay linear over the last `decay_fraction`; inverse-root is Vaswani
    et al. 2017, section 5.3, by its peak instead of the width.
    """
    warmup = min(config.warmup_steps, total // 2)
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    match config.schedule:
        case "constant":
            height = 1.0
        case "linear":
            height = 1.0 - progress
        case "cosine":
            height = 0.5 * (1.0 + math.cos(math.pi * progress))
        case "wsd":
            height = min(1.0, (1.0 - progress) / config.decay_fraction)
        case "inverse-root":
            height = (max(1, warmup) / (step + 1)) ** 0.5
    return config.final_lr_fraction + (1.0 - config.final_lr_fraction) * height


@dataclass
class Horizon:
    """The number of steps of a run: known from the start, or planned from a time budget and planned again as it is used up.

    Each plan is kept with the step from which it holds, so that what the learning rate did can be told from the plans.

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
        """Time to plan again: early on after 1, 2, 4, 8 ... steps, then a hundred times in the run."""
        if self.seconds is None or step == 0:
            return False
        return step % max(1, self.total // 100) == 0 or step & (step - 1) == 0


def make_horizon(config: TrainConfig, tokens_per_epoch: int, tokens_per_step: int) -> Horizon:
    """The horizon that the configuration asks for: steps, minutes or epochs; without any of them, one epoch."""
    if config.minutes is not None:
        return Horizon(config.minutes * 60.0, total=1_000_000)
    if config.steps is not None:
        return Horizon(None, config.steps)
    return Horizon(None, max(1, math.ceil((config.epochs or 1.0) * tokens_per_epoch / tokens_per_step)))
