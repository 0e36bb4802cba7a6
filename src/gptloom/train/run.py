"""From a configuration and a text to a finished run folder, and on from where one stopped."""

import hashlib
import importlib.util
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gptloom.bundle import Bundle, checkpoint_names, find_bundle
from gptloom.config import DataConfig, RunConfig, SampleConfig, merge, parse, read_toml, to_toml
from gptloom.data.batches import Batches, evaluation_windows
from gptloom.data.sources import open_corpus
from gptloom.data.tokenizers import Tokenizer, load_tokenizer, make_tokenizer
from gptloom.data.tokens import Split, TokenStore, open_store, prepare, split
from gptloom.errors import ConfigError, InputError, MachineError
from gptloom.inference.evaluation import Score, evaluate
from gptloom.model.decoder import Decoder
from gptloom.model.objective import Objective
from gptloom.plots import draw_losses
from gptloom.runtime import autocast, derive, describe_machine, peak_memory, pick_device, pick_precision, set_threads
from gptloom.train.callbacks import Callback, Metrics, Samples, Signals, TensorBoard
from gptloom.train.checkpoint import point, prune, read_checkpoint, write_checkpoint
from gptloom.train.compiling import compile_or_not
from gptloom.train.display import Display, make_display
from gptloom.train.optim import make_optimizer, optimizer_tensors, restore_optimizer
from gptloom.train.plan import Plan
from gptloom.train.schedule import Horizon, make_horizon
from gptloom.train.trainer import End, Job, Progress, Trainer


@dataclass(frozen=True)
class Result:
    """What a run came to.

    `val_loss` and `val_bpb` are the best checkpoint's: of all evaluations on the whole validation split, the lowest.
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
    best_step: int | None
    last_val_loss: float | None
    end: End
    signal: int | None


@dataclass
class Texts:
    """The tokens of a run and how they came about."""

    names: list[str]
    store: TokenStore
    split: Split


def train(texts: Sequence[str], config: RunConfig, *, run: Path | None = None, display: Display | None = None) -> Result:
    """Train a model on texts, from the beginning.

    Args:
        texts: files, folders, globs, `-` or `shakespeare`.
        config: all settings; the vocabulary's size is taken from the tokenizer.
        run: a new or empty folder for the run; by default the next free name under runs/.
        display: who shows the progress (default: standard error).

    Raises:
        GptloomError: one line with cause and cure.
    """
    display = display or make_display()
    device = _prepare_machine(config)
    if run is not None and run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise InputError("already exists and is not empty", where=str(run), cure=f"choose another --run, or continue it with `gptloom resume {run}`")
    corpus = open_corpus(texts, config.data)
    tokenizer = make_tokenizer(config.data.tokenizer, corpus)
    store = prepare(corpus, tokenizer, config.data)
    for note in corpus.notes:
        display.say(f"note: {note}")
    parts = split(store, config.data, _validation_store(config.data, tokenizer))
    config = parse(RunConfig, merge(config.model_dump(), {"model": {"vocab_size": tokenizer.vocab_size}}), where="the tokenizer")
    run = run or _next_folder(f"{corpus.name}-{config.recipe}")
    torch.manual_seed(config.seed)
    bundle = Bundle(Decoder(config.model).to(device), tokenizer)
    _describe_run(run, texts, config, store, tokenizer, device)
    return _Session(run, config, bundle, parts, device, display).go(Progress(), None, {})


def resume(run: Path, changes: Mapping[str, Any], *, checkpoint: str = "latest", display: Display | None = None) -> Result:
    """Continue a run from a checkpoint.

    Args:
        run: the run folder.
        changes: settings to change, nested; every one is reported.
        checkpoint: latest, best, or a name.
        display: who shows the progress.

    Raises:
        GptloomError: no such run, it has finished, its text has changed, or a setting cannot change any more.
    """
    display = display or make_display()
    before = parse(RunConfig, read_toml(run / "config.toml"), where=str(run / "config.toml"))
    config = _apply(before, changes)
    for key, old, new in _differences(before.model_dump(), config.model_dump()):
        display.say(f"note: {key} was {old} and is now {new}")
    device = _prepare_machine(config)
    folder = find_bundle(run, checkpoint)
    progress, horizon, tensors = read_checkpoint(folder)
    lengths = ("steps", "minutes", "epochs")
    if any(getattr(before.train, name) != getattr(config.train, name) for name in lengths):
        horizon = None
    elif progress.step >= horizon.total:
        raise InputError(f"has finished its {horizon.total:,} steps", where=str(run), cure=f"train it for longer with --steps {2 * horizon.total}")
    bundle = Bundle.load(folder, device=str(device))
    store = _find_tokens(run, config.data, bundle.tokenizer)
    parts = split(store, config.data, _validation_store(config.data, bundle.tokenizer))
    (run / "config.toml").write_text(to_toml(config), encoding="utf-8")
    display.say(f"continuing {run} from step {progress.step:,}")
    return _Session(run, config, bundle, parts, device, display).go(progress, horizon, tensors)


class _Session:
    """One process's part of a run: builds what the trainer needs and lets it go."""

    def __init__(self, run: Path, config: RunConfig, bundle: Bundle, parts: Split, device: torch.device, display: Display) -> None:
        self.run, self.config, self.bundle, self.device, self.display = run, config, bundle, device, display
        self.parts = parts
        train, model = config.train, config.model
        self.batches = Batches(parts.train, block_size=model.block_size, batch_size=train.batch_size, seed=config.seed, sampling=config.data.sampling)
        self.val_bytes = bundle.tokenizer.count_bytes(parts.val.ids[1:])
        self.optimizer = make_optimizer(bundle.model, train)
        self.signals = Signals()
        self.best: Score | None = None

    def go(self, progress: Progress, horizon: Horizon | None, tensors: dict[str, torch.Tensor]) -> Result:
        train = self.config.train
        restore_optimizer(self.bundle.model, self.optimizer, tensors)
        horizon = horizon or make_horizon(train, self.batches.tokens_per_epoch, train.batch_size * self.config.model.block_size)
        dtype = pick_precision(train.precision, self.device)
        self.bundle.model.train()
        objective = Objective(self.bundle.model)
        source = _Source(self.batches)
        compiled = compile_or_not(objective, train, horizon, self.device, source.batch(0), partial(autocast, self.device, dtype), self.display.say)
        save = partial(self._save, progress, horizon)
        job = Job(compiled, self.optimizer, source, self._evaluate, save, partial(autocast, self.device, dtype), self.device, self.config.seed)
        trainer = Trainer(job, train, horizon, progress, self._callbacks(progress))
        per_step = trainer.rehearse()
        if horizon.seconds is not None and not horizon.plans:
            horizon.plan(0, 0.0, per_step)
        parameters = self.bundle.model.parameter_count()
        plan = Plan(
            self.config, parameters, len(self.parts.train.ids), len(self.parts.val.ids), horizon, per_step, self.device, dtype, peak_memory(self.device)
        )
        for line in [f"run      {self.run}", *plan.lines(), *(f"warning: {warning}" for warning in plan.warnings())]:
            self.display.say(line)
        end = trainer.fit()
        return self._result(progress, trainer.train_loss, end)

    def _callbacks(self, progress: Progress) -> list[Callback]:
        train = self.config.train
        found: list[Callback] = [self.signals, Metrics(self.run / "metrics.jsonl", progress.step), self.display]
        if train.sample_tokens:
            found.append(Samples(self.run / "samples.jsonl", self._write_sample, self.display.show_sample))
        if train.tensorboard:
            found.append(TensorBoard(self.run / "tensorboard"))
        return found

    def _write_sample(self) -> str:
        config = SampleConfig(tokens=self.config.train.sample_tokens, seed=derive(self.config.seed, "sample"))
        return self.bundle.write(self.config.train.sample_prompt, config, on_unknown="skip")[0].text

    def _evaluate(self) -> Score:
        """The whole validation split, in float32, by the bare model: the same number that `gptloom eval` gives."""
        windows = evaluation_windows(self.parts.val, self.config.model.block_size, self.config.train.eval_batch_size)
        batches = ((batch.inputs, batch.targets) for batch in windows)
        score = evaluate(Objective(self.bundle.model), batches, device=self.device, byte_count=self.val_bytes)
        self.best = score if self.best is None or score.loss < self.best.loss else self.best
        return score

    def _save(self, progress: Progress, horizon: Horizon, improved: bool) -> Path:
        tensors = optimizer_tensors(self.bundle.model, self.optimizer)
        path = write_checkpoint(self.run, self.bundle, tensors, progress, horizon)
        if improved:
            point(self.run / "best", path.name)
        prune(self.run, self.config.train.keep, f"step-{progress.best_step or 0:06d}")
        return path

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
            best_step=progress.best_step,
            last_val_loss=progress.last_loss,
            end=end,
            signal=self.signals.received,
        )


class _Source:
    """Batches as the trainer wants them."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        batch = self.batches.batch(step)
        return batch.inputs, batch.targets


def draw_history(run: Path, config: RunConfig, progress: Progress) -> list[dict[str, Any]]:
    """Draw loss.png from metrics.jsonl; returns the lines."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    curve = {event: [(line["step"], line["loss"]) for line in lines if line["event"] == event] for event in ("train", "evaluation")}
    best = (progress.best_step, progress.best_loss) if progress.best_step is not None and progress.best_loss is not None else None
    draw_losses(run / "loss.png", curve["train"], curve["evaluation"], title=run.name, uniform=math.log(config.model.vocab_size), best=best)
    return lines


def _prepare_machine(config: RunConfig) -> torch.device:
    """Check what can be checked before any text is read."""
    if config.train.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise ConfigError("TensorBoard is not installed", where="--train.tensorboard", cure='pip install "gptloom[track]", or leave the flag out')
    set_threads(config.train.threads)
    return pick_device(config.device)


def _validation_store(config: DataConfig, tokenizer: Tokenizer) -> TokenStore | None:
    return None if config.val_text is None else prepare(open_corpus([config.val_text], config), tokenizer, config)


def _next_folder(stem: str) -> Path:
    """runs/STEM-N for the first N that is free."""
    number = 1
    while (folder := Path("runs") / f"{stem}-{number}").exists():
        number += 1
    return folder


def _describe_run(run: Path, texts: Sequence[str], config: RunConfig, store: TokenStore, tokenizer: Tokenizer, device: torch.device) -> None:
    """Create the run folder with everything that is known before the first step."""
    sources = Path(__file__).parent.parent.rglob("*.py")
    code = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(sources))).hexdigest()
    about = {
        "command": sys.argv,
        "texts": [str(Path(text).absolute()) if Path(text).exists() else text for text in texts],
        "text_sha256": store.text_sha256,
        "tokens": str(store.path),
        "tokenizer": tokenizer.fingerprint,
        "seed": config.seed,
        "device": str(device),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "code_sha256": code,
        **describe_machine(),
    }
    try:
        (run / "checkpoints").mkdir(parents=True, exist_ok=True)
        (run / "config.toml").write_text(to_toml(config), encoding="utf-8")
        (run / "run.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        tokenizer.save(run)
    except OSError as error:
        raise MachineError(f"the run folder cannot be written: {error.strerror}", where=str(run), cure="choose another folder with --run") from None


def _apply(before: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """A run's settings with changes; what the weights and the data order follow from cannot change."""
    values = before.model_dump()
    if {"steps", "minutes", "epochs"} & set(changes.get("train", {})):
        values["train"] |= {"steps": None, "minutes": None, "epochs": None}
    after = parse(RunConfig, merge(values, changes), where="resume")
    for group in ("model", "data", "seed", "recipe"):
        for key, old, new in _differences({group: getattr(before, group)}, {group: getattr(after, group)}):
            if key != "data.cache":
                raise ConfigError(f"{key} was {old} when the run began and cannot become {new}", where="resume", cure="start a new run")
    return after


def _differences(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted key, old, new) for every setting that differs."""
    found = []
    for key, old in before.items():
        new = after[key]
        old, new = (value.model_dump() if hasattr(value, "model_dump") else value for value in (old, new))
        if isinstance(old, Mapping):
            found += _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append((prefix + key, old, new))
    return found


def _find_tokens(run: Path, config: DataConfig, tokenizer: Tokenizer) -> TokenStore:
    """The tokens that a run was trained on: its token file, or its text read again, provided that it has not changed."""
    path = run / "run.json"
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        texts, sha256 = about["texts"], about["text_sha256"]
        tokens = Path(about["tokens"])
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError("is missing or damaged, so the run's text is not known", where=str(path), cure="start a new run") from None
    if tokenizer.fingerprint != about.get("tokenizer"):
        raise InputError("the tokenizer is not the one that the run began with", where=str(run), cure="start a new run")
    if tokens.exists():
        store = open_store(tokens)
        if store.text_sha256 == sha256 and store.tokenizer_fingerprint == tokenizer.fingerprint:
            return store
    if "-" in texts:
        raise InputError("the text came from standard input, and its token file is gone", where=str(tokens), cure="start a new run")
    store = prepare(open_corpus(texts, config), tokenizer, config)
    if store.text_sha256 != sha256:
        raise InputError("the text has changed since the run began", where=", ".join(texts), cure="restore it, or start a new run")
    return store
