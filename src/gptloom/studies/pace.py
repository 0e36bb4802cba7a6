"""How long trainings will take: rehearsed with a few steps, and the budget that fits into a time."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gptloom.config import RunConfig
from gptloom.data.tokens import Split, Tokens
from gptloom.inference.evaluation import Score
from gptloom.settings import merge, parse
from gptloom.studies.trial import Material, run_trial
from gptloom.training.callbacks import Callback, Request, View

RESERVE = 0.9
"""Share of the time that is planned for; the rest is for what a rehearsal cannot foresee."""

_REHEARSED = 6


@dataclass(frozen=True)
class Pace:
    """What a training of one step costs.

    Attributes:
        per_token: seconds of training per token.
        fixed: seconds that do not depend on the budget: building the model, evaluating it twice, writing a sample.
    """

    per_token: float
    fixed: float

    def seconds(self, tokens: int) -> float:
        """One training on this many tokens, in all."""
        return self.fixed + self.per_token * tokens


class _Clock(Callback):
    """Times what lies between two steps, and an evaluation."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.started = self.evaluated = 0.0

    def on_start(self, view: View) -> None:
        self.started = time.perf_counter()

    def after_evaluation(self, view: View, score: Score) -> None:
        if view.step == 0:
            self.evaluated = time.perf_counter() - self.started
            self.steps.append(time.perf_counter())

    def after_step(self, view: View) -> Request:
        self.steps.append(time.perf_counter())
        return Request.NOTHING


def rehearse(config: RunConfig, material: Material) -> Pace:
    """Train a few steps, and evaluate on a few windows, to see how long they take."""
    block, rows = config.model.block_size, config.train.eval_batch_size
    count = min(len(material.parts.val), 2 * rows * block + 1)
    few = Tokens(material.parts.val.ids[:count], np.zeros(1, dtype=np.int64))
    short: Mapping[str, Any] = {"train": {"steps": _REHEARSED, "minutes": None, "epochs": None, "patience": None, "eval_every": _REHEARSED}}
    clock, began = _Clock(), time.perf_counter()
    run_trial(
        parse(RunConfig, merge(config.model_dump(), short), where="rehearsal"), replace(material, parts=Split(material.parts.train, few)), callbacks=[clock]
    )
    whole = time.perf_counter() - began
    per_step = float(np.median(np.diff(clock.steps)[1:]))
    scale = len(material.parts.val) / count
    return Pace(per_step / (config.train.batch_size * block), whole + 2 * clock.evaluated * scale)


def affordable_tokens(paces: Mapping[str, Pace], seconds: float, most: int, least: int) -> int:
    """The largest budget a step, at most `most` and at least `least` tokens, with which every step can be trained once in the time."""
    per_token = sum(pace.per_token for pace in paces.values())
    fixed = sum(pace.fixed for pace in paces.values())
    fits = (RESERVE * seconds - fixed) / max(per_token, 1e-12)
    return int(min(most, max(least, fits)))
