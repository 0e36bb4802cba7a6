"""The loop. Nothing here has to do with GPT: it minimises any objective that returns a summed loss and a count."""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from gptloom.checkpoint.state import Divergence, Horizon, Progress
from gptloom.config.run import TrainConfig
from gptloom.errors import DivergedError
from gptloom.training.callbacks import Callback, Request, View
from gptloom.training.gradients import Gradients, clip_grads_with_norm_
from gptloom.training.interfaces import End, Interrupted, Job
from gptloom.training.optim import gradients_of, set_lr_scale
from gptloom.training.schedule import rate_share

MOST_SKIPPED = 10
"""Batches passed over in a row, after which a run is as good as stopped."""

MOST_ROLLBACKS = 3
"""Times that a run goes back to a checkpoint, at half the rate each, before it gives up."""

MANY_EPOCHS = 8
"""From which a text is small for its run."""

EVALUATING = 0.03
"""Share of a time budget that may go into evaluations, and the samples that are written with them."""


class Trainer:
    """Takes steps until the horizon, the patience or a callback ends the run.

    The first rank evaluates, saves and decides; the others only take the steps that it agrees on.
    """

    def __init__(
        self, job: Job, config: TrainConfig, horizon: Horizon, progress: Progress, callbacks: Sequence[Callback] = ()
    ) -> None:
        """Prepare; `progress` may come from a checkpoint."""
        self.job, self.config, self.horizon, self.progress, self.callbacks = job, config, horizon, progress, callbacks
        self.progress.rows = self.progress.rows or config.rows
        self.gradients = Gradients(job, progress)
        self.train_loss = math.nan
        self.lr = 0.0
        self._began = 0.0
        self._saved_at: int | None = progress.step or None
        self._views: dict[int, View] = {}  # at the steps whose checkpoints are being written
        if job.checkpoints is not None:
            job.checkpoints.on_saved = self._after_save
        self._evaluations = 10  # in the run, where the configuration does not say how often

    def rehearse(self) -> float:
        """Run a batch forward and backward without an update; returns seconds a step, before memory can run out mid-run."""
        batch = self.job.source.batch(self.progress.step)
        targets = batch[-1].numel()
        self.gradients.local(batch, targets, limit=1)
        tries = []
        for _ in range(3):
            start = time.perf_counter()
            self.gradients.local(batch, targets, limit=1)
            if self.job.device.type == "cuda":
                torch.cuda.synchronize(self.job.device)
            tries.append(time.perf_counter() - start)
            if tries[-1] > 1.0:
                break
        self.job.optimizer.zero_grad()
        per_step = min(tries) * -(-len(batch[0]) // self.progress.rows)
        self._limit_evaluations(
            per_step * self.job.validation / (2.0 * targets)
        )  # a forward pass is a third of a step, and a sample follows
        return per_step

    def fit(self) -> End:
        """Train to the end; says which end it was. All that was saved is on the disk when this returns."""
        for callback in self.callbacks:
            callback.on_start(self.view())
        self._began = time.perf_counter() - self.progress.seconds
        try:
            end = self._loop()
            if self.job.checkpoints is not None:
                self.job.checkpoints.close()
            return end
        except BaseException:
            if self.job.checkpoints is not None:
                self.job.checkpoints.abandon()
            raise
        finally:
            for callback in self.callbacks:
                callback.on_end(self.view())

    def view(self, *, logging: bool = False) -> View:
        """What callbacks are shown."""
        p, loss = self.progress, self.train_loss if math.isfinite(self.train_loss) else None
        return View(p.step, self.horizon.total, self.lr, p.tokens, p.seconds, loss, logging, p.best_loss, p.best_step)

    def _loop(self) -> End:
        job, progress, horizon = self.job, self.progress, self.horizon
        # At step 0 this measures and saves the untrained model; later it makes up for what an interrupted run still
        # owes.
        end = self._close(Request.NOTHING) if job.group.rank == 0 else None
        while True:
            horizon.total, ended = job.group.broadcast(horizon.total, int(end is not None))
            if ended or progress.step >= horizon.total:
                return end or "finished"
            try:
                forward = self._step()
            except Interrupted:  # between two passes, so the weights are those after the last whole step
                end = self._stop()
                continue
            progress.seconds = time.perf_counter() - self._began
            if forward and job.group.rank == 0:
                if horizon.due(progress.step):
                    horizon.plan(progress.step, progress.seconds, progress.seconds / progress.step)
                end = self._after_step()

    def _step(self) -> bool:
        """One optimizer step on one global batch; a loss or gradient that is not finite is caught before the update. False after going back."""
        progress, optimizer = self.progress, self.job.optimizer
        share = rate_share(self.config, progress.step, self.horizon.total) * 0.5**progress.rollbacks
        self.lr = self.config.learning_rate * share
        set_lr_scale(optimizer, share)
        batch = self.job.source.batch(progress.step)
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
        """Pass over the step (True), go back (False), or end, as the configuration says; every rank has seen the same numbers."""
        progress, checkpoints, first = self.progress, self.job.checkpoints, self.job.group.rank == 0
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
        self.job.group.broadcast(0)  # nobody reads the checkpoint before it is whole
        back = checkpoints.rollback() if checkpoints is not None and action == "rollback" else None
        if action == "skip":
            progress.step += 1
            progress.skipped += 1
        elif back is not None:
            kept = {"seconds": progress.seconds, "rollbacks": progress.rollbacks + 1}
            vars(progress).update(asdict(back) | kept)
            self._saved_at = progress.step
        for callback in self.callbacks:
            callback.after_divergence(self.view(), found)
        if action == "stop" or (action == "rollback" and back is None):
            replay = f"; what is needed to replay it lies in {where}" if where else ""
            rates = "--train.learning-rate" + (
                " and --train.matrix-learning-rate" if self.config.optimizer == "muon" else ""
            )
            cure = f"try a tenth of {rates}, or --train.on-divergence rollback{replay}"
            raise DivergedError(str(found), where=f"step {found.step + 1}", cure=cure)
        return back is None

    def _after_step(self) -> End | None:
        """Show the callbacks what happened, and do what is due."""
        if self.job.checkpoints is not None:
            self.job.checkpoints.poll()
        view, request = self.view(logging=self._log_is_due()), Request.NOTHING
        for callback in self.callbacks:
            request |= callback.after_step(view)
        return self._close(request)

    def _close(self, request: Request) -> End | None:
        """Evaluate and save if that is due or asked for; says whether the run has come to its end."""
        step = self.progress.step
        if self.job.interrupted() or (Request.STOP in request and Request.EVALUATE not in request):
            return self._stop()
        try:
            looks = self._evaluation_is_due() or Request.EVALUATE in request
            improved = self._evaluate() if looks else False
        except Interrupted:  # the evaluation is made up for when the run is resumed
            return self._stop()
        saves = looks if self.config.save_every is None else step % self.config.save_every == 0
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

    def _evaluate(self) -> bool:
        """Read the validation split; says whether it was the best so far."""
        progress, start = self.progress, time.perf_counter()
        score = self.job.evaluate()
        progress.last_loss, progress.last_evaluated = score.loss, progress.step
        self._saved_at = None  # a checkpoint of this step, written before, knows nothing of it
        # The untrained model is measured, but it is no candidate for the best.
        improved = progress.step > 0 and (progress.best_loss is None or score.loss < progress.best_loss)
        if improved:
            progress.best_loss, progress.best_step, progress.stale = score.loss, progress.step, 0
        elif progress.step > 0:
            progress.stale += 1
        for callback in self.callbacks:
            callback.after_evaluation(self.view(), score)
        self._limit_evaluations(time.perf_counter() - start)
        return improved

    def _limit_evaluations(self, seconds: float) -> None:
        """Evaluating, which takes so long, changes no training loss; so here the clock may decide how often."""
        if self.horizon.seconds is not None:
            self._evaluations = min(10, max(1, int(EVALUATING * self.horizon.seconds / max(seconds, 1e-9))))

    def _save(self, improved: bool) -> None:
        """Have a checkpoint written, unless this step's has been."""
        if self._saved_at != self.progress.step:
            self._saved_at = self.progress.step
            if self.job.checkpoints is not None:
                self._views[self.progress.step] = self.view()
                self.job.checkpoints.save(improved)

    def _after_save(self, step: int, path: Path) -> None:
        """Tell the callbacks of a checkpoint that now exists."""
        view = self._views.pop(step, self.view())
        for callback in self.callbacks:
            callback.after_save(view, path)

    def _evaluation_is_due(self) -> bool:
        """At the end of the run, at its beginning unless the clock is running, and every so many steps.

        Where that number is not set: when the run's share for one has gone by since the last, and after the first
            epochs of many.
        """
        step, last, every = self.progress.step, self.progress.last_evaluated, self.config.eval_every
        if last == step:
            return False
        if step >= self.horizon.total:
            return True
        if (
            step == 0
        ):  # what it would say, the first training loss says, too; where time is short, it is not spent on that
            return every is not None or self.horizon.seconds is None
        if every is not None:
            return step % every == 0
        return (step - (last or 0)) * self._evaluations >= self.horizon.total or self._epochs_have_doubled(step)

    def _epochs_have_doubled(self, step: int) -> bool:
        """After 1, 2, 4, ...

        epochs of many: a small text is learned by heart, and the model is at its best long before the run's end.
        """
        epoch = self.job.epoch
        if not epoch or step % epoch or self.horizon.total < MANY_EPOCHS * epoch:
            return False
        return (step // epoch).bit_count() == 1

    def _log_is_due(self) -> bool:
        """At the first and the last step, and every so many steps, or a hundred times in the run."""
        step, total, every = self.progress.step, self.horizon.total, self.config.log_every
        regular = step % every == 0 if every is not None else step * 100 // total > (step - 1) * 100 // total
        return regular or step in (1, total)
