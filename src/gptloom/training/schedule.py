"""Learning rate schedules, and the number of steps that a configuration asks for."""

import math
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

from gptloom.checkpoint.state import Horizon, Progress, State
from gptloom.config.load import resolve
from gptloom.config.run import RunConfig, TrainConfig
from gptloom.errors import InputError


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


LENGTHS = ("steps", "minutes", "epochs")


def lengthen(config: RunConfig, changes: Mapping[str, Any], progress: Progress, steps_per_epoch: Fraction) -> RunConfig:
    """Add a length such as "+500" to what has been trained.

    Args:
        config: settings to which `changes` were applied, so its length is the number after the sign.
        changes: settings as they were given, nested.
        progress: progress of the run.
        steps_per_epoch: see `data.batches`.
    """
    given = changes.get("train", {})
    for name in LENGTHS:
        if str(given.get(name, "")).strip().startswith("+"):
            done = {
                "steps": progress.step,
                "minutes": progress.seconds / 60.0,
                "epochs": float(progress.step / steps_per_epoch),
            }[name]
            return resolve(config, {"train": {name: round(getattr(config.train, name) + done, 4)}}, where="resume")
    return config


def remaining(run: Path, state: State, config: RunConfig, steps_per_epoch: Fraction) -> Horizon:
    """The number of steps of a resumed run: that of its checkpoint, unless the length has changed.

    Args:
        run: the run folder.
        state: the checkpoint's state.
        config: the settings to resume with.
        steps_per_epoch: see `data.batches`.

    Raises:
        InputError: nothing is left to train.
    """
    progress, train, horizon = state.progress, config.train, state.horizon
    before = state.config.train
    if horizon is None or any(getattr(before, name) != getattr(train, name) for name in LENGTHS):
        horizon = make_horizon(train, steps_per_epoch)
        if horizon.seconds is not None and progress.seconds >= horizon.seconds:
            what = f"has been trained for {progress.seconds / 60.0:.2f} minutes, and its length cannot be less"
            raise InputError(what, where=str(run), cure=f"train it for longer with --minutes +{train.minutes:g}")
    name = next((name for name in LENGTHS if getattr(train, name) is not None), "epochs")
    cure = f"train it for longer with --{name} +{getattr(train, name) or 1:g}"
    if progress.step > horizon.total:
        what = f"has been trained for {progress.step:,} steps, and its length cannot be {horizon.total:,}"
        raise InputError(what, where=str(run), cure=cure)
    if progress.step == horizon.total and progress.last_evaluated == progress.step:
        raise InputError(f"has finished its {horizon.total:,} steps", where=str(run), cure=cure)
    return horizon
