"""The training loop. Nothing in it is specific to GPT: it minimizes any objective that returns (summed loss, count)."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from gptloom.checkpoint.manager import CheckpointManager
from gptloom.checkpoint.state import Divergence, Horizon, Optimizer, Progress
from gptloom.config.run import TrainConfig
from gptloom.distributed import ProcessGroup
from gptloom.errors import DivergedError
from gptloom.generate.task import Score
from gptloom.training.callbacks import Callback, Interrupted, Request, View
from gptloom.training.gradients import Gradients, clip_grads_with_norm_
from gptloom.training.optim import gradients_of, set_lr_scale
from gptloom.training.schedule import rate_share

MOST_SKIPPED = 10
"""Consecutive batches without a finite loss, after which a run that skips them ends."""

MOST_ROLLBACKS = 3
"""Times that a run returns to a checkpoint before it ends; each time the learning rate is halved."""

MANY_EPOCHS = 8
"""Epochs in a run from which its text counts as small."""

EVALUATING = 0.03
"""Fraction of a time budget for evaluations and the samples that are written with them."""

End = Literal["finished", "patience", "stopped"]
"""How a training ends."""


@runtime_checkable
class Source(Protocol):
    """Training batches by step."""

    def batch(self, step: int) -> tuple[Tensor, ...]:
        """The objective's arguments at a step: ids (b, t), the targets last."""


class Trainer:
    """Takes steps until the horizon, the patience or a callback ends the training. `setup.setup` makes one.

    The first rank evaluates, saves and decides. The other ranks only take the steps that it announces.

    Args:
        config: the settings of steps, evaluations and saves.
        objective: maps a batch to (summed nats, count); it may be compiled.
        optimizer: holds the objective's parameters.
        batches: this rank's batches.
        evaluate: measures the validation loss without drawing random numbers.
        device: where batches are moved.
        seed: dropout is a function of (seed, step, rank); None leaves the random state as it is.
        horizon: the number of steps.
        progress: how far the training is, from a checkpoint.
        autocast: makes the context of each forward pass.
        group: the ranks that train together.
        callbacks: called by the first rank.
        checkpoints: saves the state; None for a training that is not saved.
        interrupted: whether a signal asks to stop.
        validation_tokens: the number that `evaluate` reads, to estimate its time.
        epoch_steps: steps per epoch; 0 if unknown.
        say: reports which pass is used; see `TrainingPass`.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        objective: nn.Module,
        optimizer: Optimizer,
        batches: Source,
        evaluate: Callable[[], Score],
        device: torch.device,
        seed: int | None,
        horizon: Horizon,
        progress: Progress,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        group: ProcessGroup | None = None,
        callbacks: Sequence[Callback] = (),
        checkpoints: CheckpointManager | None = None,
        interrupted: Callable[[], bool] = lambda: False,
        validation_tokens: int = 0,
        epoch_steps: int = 0,
        say: Callable[[str], None] | None = None,
    ) -> None:
        """Nothing is computed yet."""
        self.config, self.optimizer, self.batches, self.evaluate = config, optimizer, batches, evaluate
        self.device, self.horizon, self.progress, self.group = device, horizon, progress, group or ProcessGroup()
        self.callbacks, self.checkpoints, self.interrupted = callbacks, checkpoints, interrupted
        self.validation_tokens, self.epoch_steps = validation_tokens, epoch_steps
        self.progress.rows = self.progress.rows or config.rows
        self.gradients = Gradients(
            objective,
            optimizer,
            autocast,
            device=device,
            seed=seed,
            progress=progress,
            group=self.group,
            interrupted=interrupted,
            say=say,
        )
        self.train_loss = math.nan
        self.lr = 0.0
        self._began = 0.0
        self._saved_at: int | None = progress.step or None
        self._views: dict[int, View] = {}  # at the steps whose checkpoints are being written
        self._evaluations = 10  # in the run, where the configuration does not say how often
        if checkpoints is not None:
            checkpoints.on_saved = self._after_save

    def rehearse(self) -> float:
        """Run a batch forward and backward without an update, so that memory runs out now or never.

        Returns:
            Seconds per step.
        """
        batch = self.batches.batch(self.progress.step)
        targets = batch[-1].numel()
        self.gradients.local(batch, targets, limit=1)
        tries = []
        for _ in range(3):
            start = time.perf_counter()
            self.gradients.local(batch, targets, limit=1)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            tries.append(time.perf_counter() - start)
            if tries[-1] > 1.0:
                break
        self.optimizer.zero_grad()
        per_step = min(tries) * -(-len(batch[0]) // self.progress.rows)
        # A forward pass takes a third of a step; a sample follows each evaluation.
        self._limit_evaluations(per_step * self.validation_tokens / (2.0 * targets))
        return per_step

    def fit(self) -> End:
        """Train to the end, and return how it ended. All checkpoints are then on the disk."""
        for callback in self.callbacks:
            callback.on_start(self.view())
        self._began = time.perf_counter() - self.progress.seconds
        try:
            end = self._loop()
            if self.checkpoints is not None:
                self.checkpoints.close()
            return end
        except BaseException:
            if self.checkpoints is not None:
                self.checkpoints.abandon()
            raise
        finally:
            for callback in self.callbacks:
                callback.on_end(self.view())

    def view(self, *, logging: bool = False) -> View:
        """The state that callbacks see."""
        p, loss = self.progress, self.train_loss if math.isfinite(self.train_loss) else None
        return View(p.step, self.horizon.total, self.lr, p.tokens, p.seconds, loss, logging, p.best_loss, p.best_step)

    def _loop(self) -> End:
        group, progress, horizon = self.group, self.progress, self.horizon
        # At step 0 this evaluates and saves the untrained model; later, whatever an interrupted run did not finish.
        end = self._close(Request.NOTHING) if group.rank == 0 else None
        while True:
            horizon.total, ended = group.broadcast(horizon.total, int(end is not None))
            if ended or progress.step >= horizon.total:
                return end or "finished"
            try:
                forward = self.step()
            except Interrupted:  # between two passes: the weights are those after the last complete step
                end = self._stop()
                continue
            progress.seconds = time.perf_counter() - self._began
            if forward and group.rank == 0:
                if horizon.due(progress.step):
                    horizon.plan(progress.step, progress.seconds, progress.seconds / progress.step)
                end = self._after_step()

    def step(self) -> bool:
        """Take one optimizer step on one global batch.

        Returns:
            Whether the training is one step further; False after a rollback.

        Raises:
            DivergedError: the loss or the gradient is not finite, and `on_divergence` says stop. The weights are
                unchanged.
        """
        progress, optimizer = self.progress, self.optimizer
        share = rate_share(self.config, progress.step, self.horizon.total) * 0.5**progress.rollbacks
        self.lr = self.config.learning_rate * share
        set_lr_scale(optimizer, share)
        batch = self.batches.batch(progress.step)
        loss, count = self.gradients.of(batch)
        gradients = gradients_of(optimizer)
        norm, self.train_loss = float(nn.utils.get_total_norm(gradients)), float(loss)
        if not (math.isfinite(self.train_loss) and math.isfinite(norm)):
            return self._diverge(norm, batch)
        if self.config.grad_clip:
            clip_grads_with_norm_(gradients, self.config.grad_clip, norm)
        optimizer.step()
        progress.step += 1
        progress.tokens += count
        progress.skipped = 0
        return True

    def _diverge(self, norm: float, batch: tuple[Tensor, ...]) -> bool:
        """Skip the step (True), roll back (False) or stop, as `on_divergence` says. All ranks have the same numbers."""
        progress, checkpoints, first = self.progress, self.checkpoints, self.group.rank == 0
        action = self.config.on_divergence
        if (action == "skip" and progress.skipped >= MOST_SKIPPED) or (
            action == "rollback" and progress.rollbacks >= MOST_ROLLBACKS
        ):
            action = "stop"
        found = Divergence(progress.step, self.train_loss, norm, self.lr, action)
        where = None
        if first and checkpoints is not None:
            where = checkpoints.keep_evidence(found, batch)
            checkpoints.wait()
        self.group.broadcast(0)  # no rank reads the checkpoint before it is complete
        back = checkpoints.rollback(found.step) if checkpoints is not None and action == "rollback" else None
        if action == "skip":
            progress.step += 1
            progress.skipped += 1
        elif back is not None:
            kept = {"seconds": progress.seconds, "rollbacks": progress.rollbacks + 1}
            vars(progress).update(asdict(back) | kept)
            if first and checkpoints is not None:
                checkpoints.discard_after(back)
            self._saved_at = progress.step
        for callback in self.callbacks:
            callback.after_divergence(self.view(), found)
        if action == "stop" or (action == "rollback" and back is None):
            replay = f"; the state and the batch are in {where}, to replay the step" if where else ""
            muon = " and --train.matrix-learning-rate" if self.config.optimizer == "muon" else ""
            rates = f"--train.learning-rate{muon}"
            other = "" if self.config.on_divergence == "rollback" else ", or --train.on-divergence rollback"
            cure = f"try a tenth of {rates}{other}{replay}"
            raise DivergedError(str(found), where=f"step {found.step + 1}", cure=cure)
        return back is None

    def _after_step(self) -> End | None:
        """Call the callbacks, then evaluate and save if that is due."""
        if self.checkpoints is not None:
            self.checkpoints.poll()
        view, request = self.view(logging=self._log_is_due()), Request.NOTHING
        for callback in self.callbacks:
            request |= callback.after_step(view)
        return self._close(request)

    def _close(self, request: Request) -> End | None:
        """Evaluate and save if that is due or requested. Returns how the run ends, or None if it continues."""
        step = self.progress.step
        if self.interrupted() or (Request.STOP in request and Request.EVALUATE not in request):
            return self._stop()
        try:
            looks = self._evaluation_is_due() or Request.EVALUATE in request
            score = self._evaluate() if looks else None
        except Interrupted:  # the evaluation takes place when the run is resumed
            return self._stop()
        improved = score is not None and self.progress.best_step == step
        saves = looks if self.config.save_every is None else step % self.config.save_every == 0
        saves = saves and not (score is not None and score.is_broken)  # it would replace a checkpoint that can be used
        if improved or saves or step >= self.horizon.total or Request.SAVE in request:
            self._save(improved)
        if Request.STOP in request:
            return self._stop()
        if self.config.patience and self.progress.stale >= self.config.patience:
            self._save(False)
            return "patience"
        return None

    def _stop(self) -> End:
        self._save(False)
        return "stopped"

    def _evaluate(self) -> Score:
        """Measure the validation loss. A loss that is not finite is never the best."""
        progress, start = self.progress, time.perf_counter()
        score = self.evaluate()
        measured = math.isfinite(score.loss)
        progress.last_loss, progress.last_evaluated = score.loss if measured else None, progress.step
        self._saved_at = None  # an earlier checkpoint of this step does not contain the loss
        # The untrained model is measured, but it cannot be the best.
        best = math.inf if progress.best_loss is None else progress.best_loss
        if progress.step > 0 and score.loss < best:
            progress.best_loss, progress.best_step, progress.stale = score.loss, progress.step, 0
        elif progress.step > 0 and score.tokens:
            progress.stale += 1
        for callback in self.callbacks:
            callback.after_evaluation(self.view(), score)
        self._limit_evaluations(time.perf_counter() - start)
        return score

    def _limit_evaluations(self, seconds: float) -> None:
        """Limit the number of evaluations by their time. They change no training loss, so the clock may decide."""
        if self.horizon.seconds is not None:
            self._evaluations = min(10, max(1, int(EVALUATING * self.horizon.seconds / max(seconds, 1e-9))))

    def _save(self, improved: bool) -> None:
        """Save a checkpoint, unless this step has one."""
        if self._saved_at != self.progress.step:
            self._saved_at = self.progress.step
            if self.checkpoints is not None:
                self._views[self.progress.step] = self.view()
                self.checkpoints.save(improved)

    def _after_save(self, step: int, path: Path) -> None:
        """Tell the callbacks of a checkpoint that now exists."""
        view = self._views.pop(step, self.view())
        for callback in self.callbacks:
            callback.after_save(view, path)

    def _evaluation_is_due(self) -> bool:
        """Whether to evaluate at this step.

        That is at the end, at the beginning of a run without a time limit, and every `eval_every` steps. Without
        `eval_every`: after a fixed fraction of the run since the last evaluation, and when `_epochs_have_doubled`.
        """
        step, last, every = self.progress.step, self.progress.last_evaluated, self.config.eval_every
        if last == step:
            return False
        if step >= self.horizon.total:
            return True
        if step == 0:  # the first training loss says the same, so a timed run skips it
            return every is not None or self.horizon.seconds is None
        if every is not None:
            return step % every == 0
        return (step - (last or 0)) * self._evaluations >= self.horizon.total or self._epochs_have_doubled(step)

    def _epochs_have_doubled(self, step: int) -> bool:
        """Whether 1, 2, 4, ... epochs of many have passed: a small text is overfitted long before the run ends."""
        epoch = self.epoch_steps
        if not epoch or step % epoch or self.horizon.total < MANY_EPOCHS * epoch:
            return False
        return (step // epoch).bit_count() == 1

    def _log_is_due(self) -> bool:
        """Whether to log: at the first and the last step, and every `log_every` steps, or a hundred times in a run."""
        step, total, every = self.progress.step, self.horizon.total, self.config.log_every
        regular = step % every == 0 if every is not None else step * 100 // total > (step - 1) * 100 // total
        return regular or step in (1, total)
