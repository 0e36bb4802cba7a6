"""One process's part of a run: `Session` makes the trainer, evaluates, samples, announces and reports."""

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from gptloom.bundle import Bundle
from gptloom.checkpoint.format import find_bundle
from gptloom.checkpoint.manager import CheckpointManager
from gptloom.checkpoint.state import Progress, State
from gptloom.config.run import RunConfig, SampleConfig
from gptloom.data.pair_batches import pair_texts
from gptloom.data.tokens import Split
from gptloom.devices import derive, peak_memory, pick_precision, published_peak
from gptloom.distributed import ProcessGroup
from gptloom.generate.task import Score, evaluate
from gptloom.model.build import operations_per_token
from gptloom.model.loss import Objective
from gptloom.training.callbacks import Callback, Interrupted, Metrics, Samples, Signals, Spikes, TensorBoard
from gptloom.training.optim import OptimizerFactory, make_optimizer
from gptloom.training.progress import Display, Plan
from gptloom.training.run_dir import draw_history, note_passes, read_history
from gptloom.training.schedule import make_horizon
from gptloom.training.setup import setup
from gptloom.training.trainer import End, Trainer


@dataclass(frozen=True)
class Result:
    """The result of a run. Losses are in nats per token.

    Attributes:
        run: the run folder.
        checkpoint: the folder of the best checkpoint.
        parameters: number of the model's parameters.
        steps: optimizer steps.
        tokens: targets trained on.
        seconds: training time.
        train_loss: loss of the last batch.
        val_loss: the lowest loss of all evaluations on the whole validation split; the best checkpoint has it.
        val_bpb: the same in bits per byte.
        exact_match: the fraction of validation targets that the best checkpoint of an encoder-decoder writes exactly.
        best_step: step of the best checkpoint; None if it is kept from before the run was resumed.
        last_val_loss: loss of the last evaluation.
        end: finished, patience or stopped.
        signal: the signal that stopped the run.
    """

    run: str
    checkpoint: str
    parameters: int
    steps: int
    tokens: int
    seconds: float
    train_loss: float
    val_loss: float | None
    val_bpb: float | None
    exact_match: float | None
    best_step: int | None
    last_val_loss: float | None
    end: End
    signal: int | None

    def __repr__(self) -> str:
        """The run, how it ended, and its best loss; the other values are attributes."""
        return f"Result(run={self.run!r}, end={self.end!r}, steps={self.steps}, val_loss={self.val_loss})"


Item = TypeVar("Item")


class Session:
    """One process's part of a run: the first rank's also evaluates, saves, logs and reports.

    Args:
        run: the run folder.
        config: all settings.
        bundle: the model on its device, and its tokenizer.
        parts: training and validation tokens.
        display: shows the progress.
        group: the ranks that train together.
        optimizer: makes the optimizer of parameter groups, in place of the one that `config` names.
    """

    def __init__(
        self,
        run: Path,
        config: RunConfig,
        bundle: Bundle,
        parts: Split,
        *,
        display: Display,
        group: ProcessGroup,
        optimizer: OptimizerFactory | None = None,
    ) -> None:
        """Make the batches; nothing is computed yet."""
        self.run, self.config, self.bundle, self.parts = run, config, bundle, parts
        self.display, self.group, self.factory, self.task = display, group, optimizer, bundle.task
        self.batches = self.task.training_batches(
            config, parts.train, bundle.tokenizer, rank=group.rank, world=group.world
        )
        self.val_bytes = self.task.predicted_bytes(parts.val, bundle.tokenizer)
        self.signals = Signals()

    def fit(self, state: State) -> tuple[End, float]:
        """Train from a checkpoint's state on; returns how the training ended and the last batch's loss.

        Without a horizon in `state`, the configuration says how long the run is.
        """
        config, model, progress = self.config, self.bundle.model, state.progress
        horizon = state.horizon or make_horizon(config.train, self.batches.steps_per_epoch)
        model.train()
        trainer = setup(
            config,
            model=model,
            batches=self.batches,
            horizon=horizon,
            evaluate=self._evaluate,
            optimizer=make_optimizer(model, config.train, self.group, factory=self.factory),
            optimizer_state=state.optimizer,
            progress=progress,
            group=self.group,
            callbacks=self._callbacks(progress) if self.group.rank == 0 else (),
            checkpoints=partial(
                CheckpointManager,
                self.run,
                config=config,
                model=model,
                tokenizer=self.bundle.tokenizer,
                say=self.display.say,
            ),
            interrupted=self.signals.stopping,
            validation_tokens=len(self.parts.val.ids),
            epoch_steps=math.ceil(self.batches.steps_per_epoch),
            say=self.display.say,
        )
        seconds = trainer.rehearse()
        if horizon.seconds is not None and not horizon.plans:
            horizon.plan(progress.step, progress.seconds, seconds)
        if self.group.rank == 0:
            self._announce(trainer, seconds)
        return trainer.fit(), trainer.train_loss

    def result(self, progress: Progress, end: End, train_loss: float) -> Result:
        """Draw loss.png and return the result."""
        history = read_history(self.run)
        if end != "stopped":  # after a signal, the process ends as soon as it can
            draw_history(self.run, history, self.config, progress)
        evaluations = [line for line in history if line["event"] == "evaluation"]
        bits = [line.get("bpb") for line in evaluations if line["step"] == progress.best_step]
        return Result(
            run=str(self.run),
            checkpoint=str(find_bundle(self.run, "best")),
            parameters=self.bundle.model.parameter_count(),
            steps=progress.step,
            tokens=progress.tokens,
            seconds=round(progress.seconds, 3),
            train_loss=train_loss,
            val_loss=progress.best_loss,
            val_bpb=bits[-1] if bits else None,
            exact_match=None if end == "stopped" else self._exact_match(),
            best_step=progress.best_step,
            last_val_loss=progress.last_loss,
            end=end,
            signal=self.signals.received if end == "stopped" else None,
        )

    def _announce(self, trainer: Trainer, per_step: float) -> None:
        """Print the plan, its warnings, and which passes train; note the latter in run.json."""
        config, device = self.config, trainer.device
        dtype = pick_precision(config.train.precision, device)
        steps = trainer.horizon.total - trainer.progress.step
        epochs = steps / self.batches.steps_per_epoch
        plan = Plan(
            config=config,
            parameters=self.bundle.model.parameter_count(),
            train_tokens=len(self.parts.train.ids),
            val_tokens=len(self.parts.val.ids),
            steps=steps,
            batch=self.batches.describe(),
            tokens=round(epochs * self.batches.tokens_per_epoch),
            epochs=float(epochs),
            per_step=per_step,
            device=device,
            dtype=dtype,
            memory=peak_memory(device),
        )
        for line in [f"run      {self.run}", *plan.lines(), *(f"warning: {warning}" for warning in plan.warnings())]:
            self.display.say(line)
        passes = trainer.gradients.passes
        self.display.say(f"passes   {passes.describe()}")
        note_passes(self.run, path=passes.path, why=passes.why, deviation=passes.deviation)
        peak, operations = published_peak(device, dtype), operations_per_token(config.model)
        self.display.peak = self.group.world * peak.rate / operations if peak is not None and operations else None

    def _callbacks(self, progress: Progress) -> list[Callback]:
        train = self.config.train
        found: list[Callback] = [
            self.signals,
            Metrics(self.run / "metrics.jsonl", train.on_save_failure, progress),
            self.display,
            Spikes(self.display.say),
        ]
        if train.sample_tokens and self.task.causal:
            path, show = self.run / "samples.jsonl", self.display.show_sample
            found.append(Samples(path, train.on_save_failure, progress, self._sample, show))
        if train.tensorboard:
            found.append(TensorBoard(self.run / "tensorboard", progress))
        return found

    def _sample(self) -> str:
        """A text after the sample prompt; of an encoder-decoder, the translation of the first validation source."""
        if self.task.pairs:
            source = self.bundle.tokenizer.decode(pair_texts(self.parts.val)[0][0])
            return f"{source} -> {self.bundle.generate(source, temperature=0.0)}"
        config = SampleConfig(tokens=self.config.train.sample_tokens, seed=derive(self.config.seed, "sample"))
        pieces = self.bundle.stream(self.config.train.sample_prompt, config, on_unknown="skip")
        return "".join(piece.text for piece in map(self._unless_interrupted, pieces))

    def _evaluate(self) -> Score:
        """The loss on the whole validation split, in float32, as `gptloom eval` measures it."""
        model, rows = self.bundle.model, self.config.train.eval_batch_size
        batches = self.task.evaluation_batches(self.parts.val, self.bundle.tokenizer, rows)
        batches = map(self._unless_interrupted, batches)
        return evaluate(Objective(model), batches, device=model.device, byte_count=self.val_bytes)

    def _unless_interrupted(self, item: Item) -> Item:
        """Return `item`, unless a signal asks to stop."""
        if self.signals.stopping():
            raise Interrupted
        return item

    def _exact_match(self) -> float | None:
        """Of the best checkpoint, which need not be the last."""
        if not self.task.pairs:
            return None
        best = Bundle.load(self.run, device=str(self.bundle.model.device))
        return self.task.exact_match(best.model, self.parts.val, best.tokenizer)
