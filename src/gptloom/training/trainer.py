"""The loop. Nothing here has to do with GPT: it minimises any objective that returns a summed loss and a count."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from gptloom.config import IGNORED, TrainConfig
from gptloom.errors import DivergedError, MachineError
from gptloom.inference.evaluation import Score
from gptloom.runtime import derive, is_out_of_memory
from gptloom.training.callbacks import Callback, Request, View
from gptloom.training.schedule import Horizon, learning_rate

End = Literal["finished", "patience", "stopped"]


@runtime_checkable
class Source(Protocol):
    """Where batches come from."""

    def batch(self, step: int) -> tuple[Tensor, ...]:
        """What the objective takes at a step, the targets last; always the same for the same step."""


@dataclass
class Progress:
    """How far a run is: all that a checkpoint must remember besides weights and optimizer.

    Attributes:
        step: optimizer steps done.
        tokens: targets trained on.
        seconds: training time.
        best_loss: lowest validation loss.
        best_step: its step.
        stale: evaluations since then.
        rows: sequences per forward pass, as memory allowed.
        last_loss: validation loss at the latest evaluation.
        last_evaluated: the step of the latest evaluation.
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


@dataclass(frozen=True)
class Job:
    """What a trainer works on.

    Attributes:
        objective: a batch to (summed nats, count); possibly compiled.
        optimizer: already holding the objective's parameters.
        source: batches by step.
        evaluate: the validation score, without drawing anything random.
        save: write a checkpoint and say where; told whether it is the best so far.
        autocast: a fresh context for each forward pass.
        device: where batches go.
        seed: dropout is a function of this and the step.
    """

    objective: nn.Module
    optimizer: torch.optim.Optimizer
    source: Source
    evaluate: Callable[[], Score]
    save: Callable[[bool], Path]
    autocast: Callable[[], AbstractContextManager[object]]
    device: torch.device
    seed: int


class Trainer:
    """Takes steps until the horizon, the patience or a callback ends the run."""

    def __init__(self, job: Job, config: TrainConfig, horizon: Horizon, progress: Progress, callbacks: Sequence[Callback] = ()) -> None:
        """Prepare; `progress` may come from a checkpoint."""
        self.job, self.config, self.horizon, self.progress, self.callbacks = job, config, horizon, progress, callbacks
        self.progress.rows = self.progress.rows or config.rows
        self.loss: Tensor | None = None
        self.train_loss = math.nan
        self.lr = 0.0
        self._checked = job.device.type == "cpu"  # there, reading a loss costs nothing, so every step is checked
        self._saved_at: int | None = progress.step or None
        self._evaluations = 10  # in the run, where the configuration does not say how often

    def rehearse(self) -> float:
        """Run a batch forward and backward without an update; returns seconds a step, before memory can run out mid-run."""
        batch = self.job.source.batch(self.progress.step)
        self._accumulate(batch, limit=1)
        tries = []
        for _ in range(3):
            start = time.perf_counter()
            self._accumulate(batch, limit=1)
            self._synchronise()
            tries.append(time.perf_counter() - start)
            if tries[-1] > 1.0:
                break
        self.job.optimizer.zero_grad()
        return min(tries) * -(-len(batch[0]) // self.progress.rows)

    def fit(self) -> End:
        """Train to the end; says which end it was."""
        for callback in self.callbacks:
            callback.on_start(self.view())
        try:
            if self.progress.step == 0:
                self._evaluate()
            return self._loop(time.perf_counter() - self.progress.seconds)
        finally:
            for callback in self.callbacks:
                callback.on_end(self.view())

    def view(self, *, logging: bool = False) -> View:
        """What callbacks are shown."""
        p, loss = self.progress, self.train_loss if logging else None
        return View(p.step, self.horizon.total, self.lr, p.tokens, p.seconds, loss, logging, p.best_loss, p.best_step)

    def _loop(self, began: float) -> End:
        progress, horizon = self.progress, self.horizon
        while progress.step < horizon.total:
            self._step()
            progress.seconds = time.perf_counter() - began
            if horizon.due(progress.step):
                horizon.plan(progress.step, progress.seconds, progress.seconds / progress.step)
            last = progress.step >= horizon.total
            request = self._after_step()
            looks = last or Request.EVALUATE in request or self._evaluation_is_due()
            improved = self._evaluate() if looks else False
            saves = looks if self.config.save_every is None else progress.step % self.config.save_every == 0
            if improved or last or saves or Request.SAVE in request:
                self._save(improved)
            if Request.STOP in request:
                return "stopped"
            if self.config.patience and progress.stale >= self.config.patience:
                self._save(False)
                return "patience"
        return "finished"

    def _step(self) -> None:
        """One optimizer step on one global batch."""
        step, optimizer = self.progress.step, self.job.optimizer
        self.lr = learning_rate(self.config, step, self.horizon.total)
        for group in optimizer.param_groups:
            group["lr"] = self.lr
        self.loss, count = self._accumulate(self.job.source.batch(step))
        if self._checked:
            self._check_finite()
        if self.config.grad_clip:
            nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], self.config.grad_clip)
        optimizer.step()
        self.progress.step += 1
        self.progress.tokens += count

    def _accumulate(self, batch: tuple[Tensor, ...], limit: int | None = None) -> tuple[Tensor, int]:
        """Gradients of the mean loss over the batch, in as many passes as memory needs; returns that loss and its count."""
        while True:
            try:
                # Dropout is a function of (seed, step): the same after a resume, or when a batch is tried again.
                torch.manual_seed(derive(self.job.seed, "dropout", self.progress.step))
                return self._passes(batch, limit)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if self.progress.rows == 1:
                    raise MachineError("even one sequence at a time does not fit into memory", cure="make the model or --model.block-size smaller") from None
            self.progress.rows = -(-self.progress.rows // 2)

    def _passes(self, batch: tuple[Tensor, ...], limit: int | None) -> tuple[Tensor, int]:
        self.job.optimizer.zero_grad()
        count = max(1, int((batch[-1] != IGNORED).sum()))
        parts = [part.to(self.job.device, non_blocking=True) for part in batch]
        rows = self.progress.rows
        total = torch.zeros((), device=self.job.device)
        for start in list(range(0, len(batch[0]), rows))[:limit]:
            with self.job.autocast():
                nats, _ = self.job.objective(*(part[start : start + rows] for part in parts))
            (nats / count).backward()
            total += nats.detach()
        return total / count, count

    def _after_step(self) -> Request:
        logging = self._log_is_due()
        if logging:
            self._check_finite()
        view, request = self.view(logging=logging), Request.NOTHING
        for callback in self.callbacks:
            request |= callback.after_step(view)
        return request

    def _evaluate(self) -> bool:
        """Read the validation split; says whether it was the best so far."""
        progress, start = self.progress, time.perf_counter()
        score = self.job.evaluate()
        if self.horizon.seconds is not None:  # evaluating changes no training loss, so here the clock may decide how often
            spent = time.perf_counter() - start
            self._evaluations = min(10, max(1, int(0.1 * self.horizon.seconds / max(spent, 1e-9))))
        progress.last_loss, progress.last_evaluated = score.loss, progress.step
        # The untrained model is measured, but it is no candidate for the best.
        improved = progress.step > 0 and (progress.best_loss is None or score.loss < progress.best_loss)
        if improved:
            progress.best_loss, progress.best_step, progress.stale = score.loss, progress.step, 0
        elif progress.step > 0:
            progress.stale += 1
        for callback in self.callbacks:
            callback.after_evaluation(self.view(), score)
        return improved

    def _save(self, improved: bool) -> None:
        if self._saved_at == self.progress.step:
            return
        self._saved_at = self.progress.step
        path = self.job.save(improved)
        for callback in self.callbacks:
            callback.after_save(self.view(), path)

    def _evaluation_is_due(self) -> bool:
        """Every so many steps; or, when that is not set, when its share of the run has gone by since the last."""
        every = self.config.eval_every
        if every is not None:
            return self.progress.step % every == 0
        return (self.progress.step - (self.progress.last_evaluated or 0)) * self._evaluations >= self.horizon.total

    def _log_is_due(self) -> bool:
        """At the first and the last step, and every so many steps, or a hundred times in the run."""
        step, total, every = self.progress.step, self.horizon.total, self.config.log_every
        regular = step % every == 0 if every is not None else step * 100 // total > (step - 1) * 100 // total
        return regular or step in (1, total)

    def _check_finite(self) -> None:
        self.train_loss = math.nan if self.loss is None else float(self.loss)
        if not math.isfinite(self.train_loss):
            what = f"the training loss is {self.train_loss} at learning rate {self.lr:.3g}"
            raise DivergedError(what, where=f"step {self.progress.step}", cure="try a tenth of --train.learning-rate")

    def _synchronise(self) -> None:
        if self.job.device.type == "cuda":
            torch.cuda.synchronize(self.job.device)
