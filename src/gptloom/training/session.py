"""One process's part of a run: builds what the trainer needs, lets it go, and says what came of it."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from gptloom.bundle import Bundle
from gptloom.config import RunConfig, SampleConfig
from gptloom.data.pair_batches import pair_texts
from gptloom.data.tokens import Split
from gptloom.inference.evaluation import Score, evaluate
from gptloom.model.objective import Objective
from gptloom.runtime import autocast, derive, peak_memory, pick_precision
from gptloom.storage import find_bundle
from gptloom.tasks import evaluation_batches, exact_match, predicted_bytes, reads_pairs, training_batches
from gptloom.training.callbacks import Callback, Metrics, Samples, Signals, TensorBoard
from gptloom.training.checkpoint import checkpoint_name, point, prune, write_checkpoint
from gptloom.training.compiling import compile_or_not
from gptloom.training.display import Display
from gptloom.training.folder import draw_history
from gptloom.training.optim import FlatAdamW
from gptloom.training.plan import Plan
from gptloom.training.schedule import Horizon, make_horizon
from gptloom.training.trainer import End, Job, Progress, Trainer


@dataclass(frozen=True)
class Result:
    """What a run came to.

    `val_loss` and `val_bpb` are the best checkpoint's: of all evaluations on the whole validation split, the lowest.
    `exact_match` is the share of validation targets that the best checkpoint of an encoder-decoder writes to the letter.
    `train_loss` is the last batch's. `end` is finished, patience or stopped; `signal` is what stopped it.
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


class Session:
    """One process's part of a run: builds what the trainer needs and lets it go."""

    def __init__(self, run: Path, config: RunConfig, bundle: Bundle, parts: Split, device: torch.device, display: Display) -> None:
        """Lay out the batches and the optimizer; nothing is computed yet."""
        self.run, self.config, self.bundle, self.device, self.display = run, config, bundle, device, display
        self.parts = parts
        self.batches = training_batches(config, parts.train, bundle.tokenizer)
        self.val_bytes = predicted_bytes(config.model, parts.val, bundle.tokenizer)
        self.optimizer = FlatAdamW(bundle.model, config.train)
        self.signals = Signals()

    def go(self, progress: Progress, horizon: Horizon | None, tensors: dict[str, torch.Tensor]) -> Result:
        """Train from `progress` on; without a horizon, the configuration says how far. `tensors` are the optimizer's, from a checkpoint."""
        train = self.config.train
        self.optimizer.restore(tensors)
        horizon = horizon or make_horizon(train, self.batches.tokens_per_epoch, train.batch_size * self.config.model.block_size)
        dtype = pick_precision(train.precision, self.device)
        self.bundle.model.train()
        objective = Objective(self.bundle.model, train.label_smoothing)
        compiled = compile_or_not(objective, train, horizon, self.device, self.batches.batch(0), partial(autocast, self.device, dtype), self.display.say)
        save = partial(self._save, progress, horizon)
        job = Job(compiled, self.optimizer, self.batches, self._evaluate, save, partial(autocast, self.device, dtype), self.device, self.config.seed)
        trainer = Trainer(job, train, horizon, progress, self._callbacks(progress))
        per_step = trainer.rehearse()
        if horizon.seconds is not None and not horizon.plans:
            horizon.plan(progress.step, progress.seconds, per_step)
        self._announce(progress, horizon, per_step, dtype)
        end = trainer.fit()
        return self._result(progress, trainer.train_loss, end)

    def _announce(self, progress: Progress, horizon: Horizon, per_step: float, dtype: torch.dtype) -> None:
        plan = Plan(
            config=self.config,
            parameters=self.bundle.model.parameter_count(),
            train_tokens=len(self.parts.train.ids),
            val_tokens=len(self.parts.val.ids),
            steps=horizon.total - progress.step,
            per_step=per_step,
            device=self.device,
            dtype=dtype,
            memory=peak_memory(self.device),
        )
        for line in [f"run      {self.run}", *plan.lines(), *(f"warning: {warning}" for warning in plan.warnings())]:
            self.display.say(line)

    def _callbacks(self, progress: Progress) -> list[Callback]:
        train = self.config.train
        found: list[Callback] = [self.signals, Metrics(self.run / "metrics.jsonl", progress.step), self.display]
        if train.sample_tokens and self.config.model.architecture != "encoder":
            found.append(Samples(self.run / "samples.jsonl", self._write_sample, self.display.show_sample))
        if train.tensorboard:
            found.append(TensorBoard(self.run / "tensorboard"))
        return found

    def _write_sample(self) -> str:
        """A text from the sample prompt; or the translation of the first source that is not trained on."""
        if reads_pairs(self.config.model):
            source = self.bundle.tokenizer.decode(pair_texts(self.parts.val)[0][0])
            return f"{source} -> {self.bundle.generate(source, temperature=0.0)}"
        config = SampleConfig(tokens=self.config.train.sample_tokens, seed=derive(self.config.seed, "sample"))
        return self.bundle.write(self.config.train.sample_prompt, config, on_unknown="skip")[0].text

    def _evaluate(self) -> Score:
        """The whole validation split, in float32, by the bare model: the same number that `gptloom eval` gives."""
        windows = evaluation_batches(self.config.model, self.parts.val, self.bundle.tokenizer, self.config.train.eval_batch_size)
        return evaluate(Objective(self.bundle.model), windows, device=self.device, byte_count=self.val_bytes)

    def _save(self, progress: Progress, horizon: Horizon, improved: bool) -> Path:
        path = write_checkpoint(self.run, self.bundle, self.optimizer.tensors(), progress, horizon)
        if improved:
            point(self.run / "best", path.name)
        prune(self.run, self.config.train.keep, {path.name, checkpoint_name(progress.best_step or 0)})
        return path

    def _exact_match(self) -> float | None:
        """Of the best checkpoint, which need not be the last."""
        if not reads_pairs(self.config.model):
            return None
        best = Bundle.load(self.run, device=str(self.device))
        return exact_match(best.model, self.parts.val, best.tokenizer)

    def _result(self, progress: Progress, train_loss: float, end: End) -> Result:
        history = draw_history(self.run, self.config, progress)
        bits = [line.get("bpb") for line in history if line["event"] == "evaluation" and line["step"] == progress.best_step]
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
            exact_match=self._exact_match(),
            best_step=progress.best_step,
            last_val_loss=progress.last_loss,
            end=end,
            signal=self.signals.received,
        )
