"""Train a model from a configuration and texts into a run folder, and resume a run."""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from gptloom.bundle import Bundle
from gptloom.checkpoint.format import checkpoint_name, checkpoint_names, checkpoint_step, find_bundle
from gptloom.checkpoint.manager import CheckpointManager
from gptloom.checkpoint.state import Progress, State, read_checkpoint
from gptloom.config.load import resolve, to_toml
from gptloom.config.run import CUSTOM, RunConfig, SampleConfig
from gptloom.data.pair_batches import pair_texts
from gptloom.data.sources import open_corpus
from gptloom.data.tokenizers import Tokenizer, load_tokenizer, make_tokenizer
from gptloom.data.tokens import Split, prepare
from gptloom.devices import derive, peak_memory, pick_device, pick_precision, published_peak, thread_count, threads
from gptloom.distributed import ProcessGroup
from gptloom.distributed.launch import launch
from gptloom.errors import ConfigError, InputError
from gptloom.files import recover, replace_text, set_aside
from gptloom.generate.task import Score, evaluate, task_of
from gptloom.model.build import build_model, check_memory, operations_per_token
from gptloom.model.loss import Objective
from gptloom.training.callbacks import Callback, Interrupted, Metrics, Samples, Signals, Spikes, TensorBoard
from gptloom.training.optim import OptimizerFactory, make_optimizer
from gptloom.training.progress import Display, Plan, make_display
from gptloom.training.run_dir import (
    check_changes,
    check_empty,
    code_notes,
    create_run,
    draw_history,
    find_parts,
    make_folder,
    make_parts,
    note_passes,
    only_writer,
    read_history,
    read_settings,
    same_length,
)
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
        best_step: step of the best checkpoint.
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


Item = TypeVar("Item")


def train(
    texts: Sequence[str],
    config: RunConfig,
    *,
    run: Path | None = None,
    display: Display | None = None,
    optimizer: OptimizerFactory | None = None,
) -> Result:
    """Train a new model on texts.

    Args:
        texts: files, folders, globs, `-` or `shakespeare`.
        config: all settings; the vocabulary's size is taken from the tokenizer.
        run: a new or empty folder for the run; by default the next free name under runs/.
        display: shows the progress (default: on standard error).
        optimizer: makes the optimizer of parameter groups, in place of the one that `config` names.

    Raises:
        GptloomError: one line with cause and cure.
    """
    display = display or make_display()
    if optimizer is not None and config.train.ranks > 1:
        raise ConfigError(
            "the other ranks cannot be given an optimizer",
            where="train.ranks",
            cure="use ranks=1, or name the optimizer, such as torch:SGD",
        )
    if optimizer is not None:
        config = config.model_copy(update={"train": config.train.model_copy(update={"optimizer": CUSTOM})})
    device = _prepare_machine(config)
    if run is not None:
        check_empty(run)
    task = task_of(config.model)
    corpus = open_corpus(texts, config.data, pairs=task.pairs)
    tokenizer = make_tokenizer(config.data.tokenizer, corpus)
    task.check_tokenizer(tokenizer)
    store = prepare(corpus, tokenizer, config.data)
    for note in corpus.notes:
        display.say(f"note: {note}")
    parts, val_text_sha256 = make_parts(config, store, tokenizer)
    known = {
        "model": {"vocab_size": tokenizer.vocab_size},
        "data": {"val_text": config.data.val_text and str(Path(config.data.val_text).absolute())},
    }
    config = resolve(config, known, where="the tokenizer")
    bundle = begin(config, tokenizer, device)
    run = make_folder(run, f"{corpus.name}-{config.recipe}")
    with only_writer(run):
        check_empty(run)
        create_run(
            run, config, tokenizer, texts=texts, store=store, val_text_sha256=val_text_sha256, device=str(device)
        )
        with threads(thread_count(config)), launch(run, config.train.ranks, device) as group:
            session = Session(run, config, bundle, parts, display=display, group=group, optimizer=optimizer)
            state = State(config, Progress(), None, {})
            return session.result(state.progress, *session.fit(state))


def begin(config: RunConfig, tokenizer: Tokenizer, device: torch.device) -> Bundle:
    """Return the untrained model. It depends only on the settings."""
    torch.manual_seed(config.seed)
    return Bundle(build_model(config.model).to(device), tokenizer)


def resume(
    run: Path, changes: Mapping[str, Any], *, checkpoint: str = "latest", display: Display | None = None
) -> Result:
    """Continue a run from a checkpoint.

    Args:
        run: the run folder.
        changes: settings to change, nested; every one is reported.
        checkpoint: latest, best, or a name.
        display: shows the progress (default: on standard error).

    Raises:
        GptloomError: there is no such run, it has finished, its text has changed, or a setting cannot be changed.
    """
    display = display or make_display()
    if not run.is_dir():
        raise InputError("there is no such run folder", where=str(run), cure="check the path")
    with only_writer(run):
        for place in (run, run / "diverged"):
            recover(place / "checkpoints")
        folder, state = _last_state(run, checkpoint)
        _point(run, folder, state.progress)
        config = resolve(read_settings(run, state.config), changes, where="resume")
        for line in [*check_changes(state.config, config), *code_notes(run)]:
            display.say(f"note: {line}")
        device = _prepare_machine(config)
        progress, horizon = state.progress, state.horizon
        if not same_length(state.config, config):
            horizon = None
        if horizon is not None and progress.step >= horizon.total and progress.last_evaluated == progress.step:
            raise InputError(
                f"has finished its {horizon.total:,} steps",
                where=str(run),
                cure=f"train it for longer with --steps {2 * horizon.total}",
            )
        bundle = (
            begin(config, load_tokenizer(run), device) if folder is None else Bundle.read(folder, device=str(device))
        )
        parts = find_parts(run, config, bundle.tokenizer)
        replace_text(run / "config.toml", to_toml(config))
        for name in checkpoint_names(run):
            if checkpoint_step(name) > progress.step:  # later checkpoints are deleted with the next save
                set_aside(run / "checkpoints" / name, checkpoint_name(progress.step))
        display.say(f"continuing {run} from step {progress.step:,}")
        with threads(thread_count(config)), launch(run, config.train.ranks, device, folder) as group:
            session = Session(run, config, bundle, parts, display=display, group=group)
            state = replace(state, horizon=horizon)
            return session.result(progress, *session.fit(state))


def _point(run: Path, folder: Path | None, progress: Progress) -> None:
    """Write the files `latest` and `best`. A killed process may not have, and an older checkpoint may be resumed."""
    if folder is not None and folder.parent.parent == run:
        replace_text(run / "latest", folder.name + "\n")
    if progress.best_step is not None and (run / "checkpoints" / checkpoint_name(progress.best_step)).exists():
        replace_text(run / "best", checkpoint_name(progress.best_step) + "\n")


def _last_state(run: Path, checkpoint: str) -> tuple[Path | None, State]:
    """The checkpoint to resume from and its state; None and the initial state if there is no checkpoint yet."""
    if checkpoint_names(run) or checkpoint != "latest" or not (run / "run.json").exists():
        folder = find_bundle(run, checkpoint)
        return folder, read_checkpoint(folder)
    return None, State(read_settings(run, None), Progress(), None, {})


def _prepare_machine(config: RunConfig) -> torch.device:
    """Check the settings against this machine before any text is read, and return the device."""
    if config.train.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise ConfigError(
            "TensorBoard is not installed",
            where="--train.tensorboard",
            cure='pip install "gptloom[track]", or leave the flag out',
        )
    device = pick_device(config.device)
    check_memory(config.model, device, copies=4, more=16 * config.train.batch_size * config.model.block_size)
    return device


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
        per_step = config.train.batch_size * config.model.block_size
        horizon = state.horizon or make_horizon(config.train, self.batches.tokens_per_epoch, per_step)
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
            epoch_steps=-(-self.batches.tokens_per_epoch // per_step),
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
        plan = Plan(
            config=config,
            parameters=self.bundle.model.parameter_count(),
            train_tokens=len(self.parts.train.ids),
            val_tokens=len(self.parts.val.ids),
            steps=trainer.horizon.total - trainer.progress.step,
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
