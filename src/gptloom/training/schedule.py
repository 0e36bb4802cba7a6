"""Learning rate schedules, and the number of steps that a configuration asks for."""

import math
from fractions import Fraction

from gptloom.checkpoint.state import Horizon
from gptloom.config.run import TrainConfig


def learning_rate(config: TrainConfig, step: int, total: int) -> float:
    """The learning rate at step `step` (from 0) of `total`; see `rate_share`."""
    return config.learning_rate * rate_share(config, step, total)


def rate_share(config: TrainConfig, step: int, total: int) -> float:
    """The learning rate at step `step` (from 0) of `total`, as a fraction of the peak.

    A linear warm-up comes before the schedule. It takes at most half the run. cosine is Loshchilov and Hutter 2017
    without restarts. wsd is warm-up, stable, decay (Hu et al. 2024, section 4), with a linear decay over the last
    `decay_fraction`. inverse-root is Vaswani et al. 2017, section 5.3, with a peak instead of the width.
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


def make_horizon(config: TrainConfig, steps_per_epoch: Fraction) -> Horizon:
    """The number of steps that the configuration asks for with steps, minutes or epochs; by default, one epoch."""
    if config.minutes is not None:
        return Horizon(config.minutes * 60.0, total=1_000_000)
    if config.steps is not None:
        return Horizon(None, config.steps)
    epochs = Fraction(str(config.epochs or 1))  # in binary, a product could be just above an integer
    return Horizon(None, max(1, math.ceil(epochs * steps_per_epoch)))
