"""From a configuration and a text to a finished run folder, and on from where one stopped."""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from gptloom.bundle import Bundle
from gptloom.config import RunConfig
from gptloom.data.sources import open_corpus
from gptloom.data.tokenizers import make_tokenizer
from gptloom.data.tokens import prepare
from gptloom.errors import ConfigError, InputError
from gptloom.inference.evaluation import Score
from gptloom.model.build import build_model, check_memory
from gptloom.runtime import pick_device, thread_count, threads
from gptloom.settings import merge, parse, read_toml, to_toml
from gptloom.storage import find_bundle
from gptloom.tasks import end_of_text, exact_match, reads_pairs
from gptloom.training.checkpoint import checkpoint_name, point, read_checkpoint
from gptloom.training.display import Display, make_display
from gptloom.training.folder import create_run, find_parts, make_parts, next_folder
from gptloom.training.session import Result, Session
from gptloom.training.trainer import Progress


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
        going_on = f", or continue it with `gptloom resume {run}`" if (run / "run.json").exists() else ""
        raise InputError("already exists and is not empty", where=str(run), cure=f"choose another --run{going_on}")
    corpus = open_corpus(texts, config.data, pairs=reads_pairs(config.model))
    tokenizer = make_tokenizer(config.data.tokenizer, corpus)
    if reads_pairs(config.model):
        end_of_text(tokenizer)
    store = prepare(corpus, tokenizer, config.data)
    for note in corpus.notes:
        display.say(f"note: {note}")
    parts, val_text_sha256 = make_parts(config, store, tokenizer)
    known = {"model": {"vocab_size": tokenizer.vocab_size}, "data": {"val_text": config.data.val_text and str(Path(config.data.val_text).absolute())}}
    config = parse(RunConfig, merge(config.model_dump(), known), where="the tokenizer")
    run = run or next_folder(f"{corpus.name}-{config.recipe}")
    torch.manual_seed(config.seed)
    bundle = Bundle(build_model(config.model).to(device), tokenizer)
    create_run(run, config, tokenizer, texts=texts, store=store, val_text_sha256=val_text_sha256, device=str(device))
    with threads(thread_count(config)):
        return Session(run, config, bundle, parts, device, display).go(Progress(), None, {})


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
    same_length = all(getattr(before.train, name) == getattr(config.train, name) for name in ("steps", "minutes", "epochs"))
    if same_length and progress.step >= horizon.total:
        raise InputError(f"has finished its {horizon.total:,} steps", where=str(run), cure=f"train it for longer with --steps {2 * horizon.total}")
    bundle = Bundle.load(folder, device=str(device))
    parts = find_parts(run, config, bundle.tokenizer)
    (run / "config.toml").write_text(to_toml(config), encoding="utf-8")
    # An older checkpoint may be resumed from, which knows nothing of a best one that came after it.
    if progress.best_step is not None and (run / "checkpoints" / checkpoint_name(progress.best_step)).exists():
        point(run / "best", checkpoint_name(progress.best_step))
    display.say(f"continuing {run} from step {progress.step:,}")
    with threads(thread_count(config)):
        return Session(run, config, bundle, parts, device, display).go(progress, horizon if same_length else None, tensors)


def validation_score(path: str | Path, *, device: str = "auto", checkpoint: str = "best") -> tuple[Score, float | None]:
    """The loss of a run's checkpoint on the run's own validation split, and an encoder-decoder's share of exact matches.

    Args:
        path: a run folder, or a checkpoint inside one.
        device: see `runtime.pick_device`.
        checkpoint: of a run folder: best, latest or a name.

    Raises:
        InputError: the folder is not part of a run, or its text is gone or has changed.
    """
    folder = find_bundle(Path(path), checkpoint)
    run = folder.parent.parent
    if not (run / "run.json").exists():
        raise InputError("is not part of a run, so it has no validation split of its own", where=str(path), cure="give a text with --text FILE")
    config = parse(RunConfig, read_toml(run / "config.toml"), where=str(run / "config.toml"))
    bundle = Bundle.load(folder, device=device)
    val = find_parts(run, config, bundle.tokenizer).val
    return bundle.score_tokens(val), exact_match(bundle.model, val, bundle.tokenizer)


def _prepare_machine(config: RunConfig) -> torch.device:
    """Check what can be checked before any text is read."""
    if config.train.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise ConfigError("TensorBoard is not installed", where="--train.tensorboard", cure='pip install "gptloom[track]", or leave the flag out')
    device = pick_device(config.device)
    check_memory(config.model, device, copies=4, more=16 * config.train.batch_size * config.model.block_size)
    return device


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
