"""torch.compile where it is wanted and works; one line and eager mode where it does not.

One process's part of a run: builds what the trainer needs, lets it go, and says what came of it.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from gptloom.bundle import Bundle
from gptloom.checkpoint.find import find_bundle
from gptloom.checkpoint.manager import CheckpointManager
from gptloom.checkpoint.state import Horizon, Progress, load_state_tensors
from gptloom.config.run import RunConfig, SampleConfig, TrainConfig
from gptloom.data.pair_batches import pair_texts
from gptloom.data.tokens import Split
from gptloom.devices import autocast, derive, peak_memory, pick_precision, published_peak
from gptloom.distributed import ProcessGroup
from gptloom.errors import InputError
from gptloom.generate.task import (
    Score,
    evaluate,
    evaluation_batches,
    exact_match,
    predicted_bytes,
    reads_pairs,
    training_batches,
)
from gptloom.model.build import operations_per_token
from gptloom.model.loss import Objective
from gptloom.training.callbacks import Callback, Metrics, Samples, Signals, Spikes, TensorBoard
from gptloom.training.interfaces import End, Interrupted, Job
from gptloom.training.optim import OptimizerFactory, make_optimizer
from gptloom.training.progress import Display, Plan
from gptloom.training.run_dir import draw_history, note_passes, read_history
from gptloom.training.schedule import make_horizon
from gptloom.training.trainer import Trainer

LAUNCH_BOUND = 50_000_000
"""Parameters below which a GPU waits for the CPU to launch its kernels, rather than the other way round."""


def wants_compile(config: TrainConfig, horizon: Horizon, device: torch.device) -> bool:
    """Whether to compile; `auto` does so for CUDA runs that are long enough to earn the compile time back.

    It never looks at measured times, so that the same settings always give the same bits.
    """
    if config.compile != "auto":
        return config.compile == "on"
    long = horizon.seconds >= 300.0 if horizon.seconds is not None else horizon.total >= 1000
    return device.type == "cuda" and long


def compile_mode(parameters: int, device: torch.device) -> str | None:
    """PyTorch's `mode`: for a small model on a GPU the one that replays all kernels of a pass as one CUDA graph."""
    return "reduce-overhead" if device.type == "cuda" and parameters < LAUNCH_BOUND else None


def compile_or_not(
    objective: nn.Module,
    config: TrainConfig,
    horizon: Horizon,
    device: torch.device,
    batch: tuple[Tensor, ...],
    autocast: Callable[[], AbstractContextManager[object]],
    say: Callable[[str], None],
) -> nn.Module:
    """The objective, compiled if that is wanted and trial passes succeed, forward and backward; its parameters stay the same."""
    if not wants_compile(config, horizon, device):
        return objective
    say("compiling the model; this takes a while once")
    parts = [part[: config.rows].to(device) for part in batch]
    try:
        mode = compile_mode(sum(p.numel() for p in objective.parameters()), device)
        compiled = cast(nn.Module, torch.compile(objective, mode=mode))
        for _ in range(
            1 if mode is None else 3
        ):  # a graph is recorded at the second pass, and replayed from the third on
            with autocast():
                nats = compiled(*parts)[0]
            nats.backward()
    except (RuntimeError, ImportError, OSError) as error:
        say(f"note: torch.compile failed ({' '.join(str(error).split())[:120]}); training goes on without it")
        return objective
    return compiled


@dataclass(frozen=True)
class Result:
    """What a run came to.

    `val_loss` and `val_bpb` are the best checkpoint's: of all evaluations on the whole validation split, the lowest.
    `exact_match` is the share of validation targets that the best checkpoint of an encoder-decoder writes to the
    letter. `train_loss` is the last batch's. `end` is finished, patience or stopped; `signal` is what stopped it.
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
    """One process's part of a run: builds what the trainer needs and lets it go. The first rank's also saves, evaluates and shows."""

    def __init__(
        self,
        run: Path,
        config: RunConfig,
        bundle: Bundle,
        parts: Split,
        device: torch.device,
        display: Display,
        group: ProcessGroup | None = None,
        optimizer: OptimizerFactory | None = None,
    ) -> None:
        """Lay out the batches and the optimizer; nothing is computed yet."""
        self.run, self.config, self.bundle, self.device, self.display = run, config, bundle, device, display
        self.parts, self.group = parts, group or ProcessGroup()
        self.batches = training_batches(config, parts.train, bundle.tokenizer, self.group.rank, self.group.world)
        self.val_bytes = predicted_bytes(config.model, parts.val, bundle.tokenizer)
        self.optimizer = make_optimizer(bundle.model, config.train, self.group, factory=optimizer)
        self.signals = Signals()

    def go(self, progress: Progress, horizon: Horizon | None, tensors: dict[str, torch.Tensor]) -> Result:
        """Train (see `fit`), and say what came of it."""
        end, train_loss = self.fit(progress, horizon, tensors)
        return self._result(progress, train_loss, end)

    def fit(self, progress: Progress, horizon: Horizon | None, tensors: dict[str, torch.Tensor]) -> tuple[End, float]:
        """Train from `progress` on; returns the end and the last batch's loss.

        Without a horizon, the configuration says how far. `tensors` are the optimizer's, from a checkpoint.
        """
        train = self.config.train
        try:
            load_state_tensors(self.optimizer, tensors)
        except ValueError as error:
            raise InputError(
                str(error), where=str(self.run), cure="resume from another checkpoint with --checkpoint"
            ) from None
        horizon = horizon or make_horizon(
            train, self.batches.tokens_per_epoch, train.batch_size * self.config.model.block_size
        )
        dtype = pick_precision(train.precision, self.device)
        self.bundle.model.train()
        objective = Objective(self.bundle.model, train.label_smoothing)
        context = partial(autocast, self.device, dtype)
        compiled = compile_or_not(
            objective, train, horizon, self.device, self.batches.batch(0), context, self.display.say
        )
        checkpoints = CheckpointManager(
            self.run,
            config=self.config,
            model=self.bundle.model,
            tokenizer=self.bundle.tokenizer,
            optimizer=self.optimizer,
            progress=progress,
            horizon=horizon,
            say=self.display.say,
        )
        stopping = self.signals.stopping
        job = Job(
            compiled,
            self.optimizer,
            self.batches,
            self._evaluate,
            context,
            self.device,
            self.config.seed,
            checkpoints,
            self.group,
            stopping,
            len(self.parts.val.ids),
            -(-self.batches.tokens_per_epoch // (train.batch_size * self.config.model.block_size)),
            self.display.say,
        )
        first = self.group.rank == 0
        trainer = Trainer(job, train, horizon, progress, self._callbacks(progress) if first else [])
        per_step = trainer.rehearse()
        if horizon.seconds is not None and not horizon.plans:
            horizon.plan(progress.step, progress.seconds, per_step)
        if first:
            self._announce(progress, horizon, per_step, dtype)
            passes = trainer.gradients.passes
            self.display.say(f"passes   {passes.describe()}")
            note_passes(self.run, path=passes.path, why=passes.why, deviation=passes.deviation)
            self.display.peak = self._tokens_at_most(dtype)
        return trainer.fit(), trainer.train_loss

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

    def _tokens_at_most(self, dtype: torch.dtype) -> float | None:
        """Tokens a second if all devices did nothing but products, at their published rate; None where that is not known."""
        peak, operations = published_peak(self.device, dtype), operations_per_token(self.config.model)
        return self.group.world * peak.rate / operations if peak is not None and operations else None

    def _callbacks(self, progress: Progress) -> list[Callback]:
        train = self.config.train
        found: list[Callback] = [
            self.signals,
            Metrics(self.run / "metrics.jsonl", train.on_save_failure, progress),
            self.display,
            Spikes(self.display.say),
        ]
        if train.sample_tokens and self.config.model.architecture != "encoder":
            found.append(
                Samples(
                    self.run / "samples.jsonl",
                    train.on_save_failure,
                    progress,
                    self._write_sample,
                    self.display.show_sample,
                )
            )
        if train.tensorboard:
            found.append(TensorBoard(self.run / "tensorboard", progress))
        return found

    def _write_sample(self) -> str:
        """A text from the sample prompt; or the translation of the first source that is not trained on."""
        if reads_pairs(self.config.model):
            source = self.bundle.tokenizer.decode(pair_texts(self.parts.val)[0][0])
            return f"{source} -> {self.bundle.generate(source, temperature=0.0)}"
        config = SampleConfig(tokens=self.config.train.sample_tokens, seed=derive(self.config.seed, "sample"))
        pieces = self.bundle.stream(self.config.train.sample_prompt, config, on_unknown="skip")
        return "".join(piece.text for piece in map(self._give_way, pieces))

    def _evaluate(self) -> Score:
        """The whole validation split, in float32, by the bare model: the same number that `gptloom eval` gives."""
        windows = evaluation_batches(
            self.config.model, self.parts.val, self.bundle.tokenizer, self.config.train.eval_batch_size
        )
        return evaluate(
            Objective(self.bundle.model), map(self._give_way, windows), device=self.device, byte_count=self.val_bytes
        )

    def _give_way(self, passed: Any = None) -> Any:
        """Pass something on, unless a signal asks to stop."""
        if self.signals.stopping():
            raise Interrupted
        return passed

    def _exact_match(self, end: End) -> float | None:
        """Of the best checkpoint, which need not be the last; a run that was stopped is not kept waiting for it."""
        if not reads_pairs(self.config.model) or end == "stopped":
            return None
        best = Bundle.load(self.run, device=str(self.device))
        return exact_match(best.model, self.parts.val, best.tokenizer)

    def _result(self, progress: Progress, train_loss: float, end: End) -> Result:
        history = read_history(self.run)
        if end != "stopped":  # whoever stops a run is not kept waiting for a picture
            draw_history(self.run, history, self.config, progress)
        bits = [
            line.get("bpb") for line in history if line["event"] == "evaluation" and line["step"] == progress.best_step
        ]
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
            exact_match=self._exact_match(end),
            best_step=progress.best_step,
            last_val_loss=progress.last_loss,
            end=end,
            signal=self.signals.received if end == "stopped" else None,
        )
