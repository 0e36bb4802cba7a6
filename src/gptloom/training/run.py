"""Train a model from a configuration and texts into a run folder, and resume a run."""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from gptloom.bundle import Bundle
from gptloom.checkpoint.format import (
    checkpoint_name,
    checkpoint_names,
    checkpoint_step,
    damage,
    find_bundle,
    read_pointer,
)
from gptloom.checkpoint.state import Progress, State, keep, read_checkpoint
from gptloom.config.load import resolve, to_toml
from gptloom.config.run import CUSTOM, RunConfig
from gptloom.data.sources import open_corpus
from gptloom.data.tokenizers import Tokenizer, load_tokenizer, make_tokenizer
from gptloom.data.tokens import prepare
from gptloom.devices import pick_device, thread_count, threads
from gptloom.distributed.launch import launch
from gptloom.errors import ConfigError, InputError
from gptloom.files import recover, replace_text, set_aside
from gptloom.generate.task import task_of
from gptloom.model.build import build_model, check_memory
from gptloom.training.optim import OptimizerFactory
from gptloom.training.progress import Display, make_display
from gptloom.training.run_dir import (
    check_changes,
    check_empty,
    code_notes,
    create_run,
    find_parts,
    make_folder,
    make_parts,
    only_writer,
    read_settings,
)
from gptloom.training.schedule import lengthen, remaining
from gptloom.training.session import Result, Session


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
    run: Path,
    changes: Mapping[str, Any],
    *,
    checkpoint: str = "latest",
    discard_later: bool = False,
    display: Display | None = None,
) -> Result:
    """Continue a run from a checkpoint. Nothing is written before all is checked.

    Args:
        run: the run folder.
        changes: settings to change, nested; every one is reported. A length such as "+500" (of steps, minutes or
            epochs) is added to what has been trained.
        checkpoint: latest, best, or a name.
        discard_later: whether checkpoints after `checkpoint` may be deleted. The best one is kept as kept-N until a
            better one is saved.
        display: shows the progress (default: on standard error).

    Raises:
        GptloomError: there is no such run, it has finished, later checkpoints would be lost, its text has changed, or
            a setting cannot be changed.
    """
    display = display or make_display()
    _check_run(run)
    with only_writer(run):
        for place in (run, run / "diverged"):
            recover(place / "checkpoints")
        folder, state = _last_state(run, checkpoint)
        progress = state.progress
        later = _later(run, progress, allowed=discard_later or checkpoint == "latest")
        best = _better_best(run, progress, later)
        if not later:
            _point(run, folder, progress)  # also if no steps are left, for other programs read these files
        config = resolve(read_settings(run, state.config), changes, where="resume")
        check_changes(state.config, config)
        device = _prepare_machine(config)
        bundle = (
            begin(config, load_tokenizer(run), device) if folder is None else Bundle.read(folder, device=str(device))
        )
        parts = find_parts(run, config, bundle.tokenizer)
        batches = bundle.task.training_batches(config, parts.train, bundle.tokenizer, rank=0, world=1)
        config = lengthen(config, changes, progress, batches.steps_per_epoch)
        horizon = remaining(run, state, config, batches.steps_per_epoch)
        notes = [*check_changes(state.config, config), *code_notes(run), *_give_up(run, later, best)]
        _point(run, folder, progress)
        replace_text(run / "config.toml", to_toml(config))
        for name in later:
            set_aside(run / "checkpoints" / name, checkpoint_name(progress.step))
        for line in notes:
            display.say(f"note: {line}")
        display.say(f"continuing {run} from step {progress.step:,}")
        with threads(thread_count(config)), launch(run, config.train.ranks, device, folder) as group:
            session = Session(run, config, bundle, parts, display=display, group=group)
            return session.result(progress, *session.fit(replace(state, horizon=horizon)))


def _check_run(run: Path) -> None:
    """Check that a path may be a run folder, before a lock is written into it."""
    if not run.is_dir():
        raise InputError("there is no such run folder", where=str(run), cure="check the path")
    if run.parent.name == "checkpoints":
        cure = f"use `gptloom resume {run.parent.parent} --checkpoint {run.name}`"
        raise InputError("is a checkpoint, and resuming needs its run folder", where=str(run), cure=cure)
    if not (run / "run.json").exists() and not checkpoint_names(run):
        find_bundle(run)
        what = "is a bundle, which has no optimizer's state"
        raise InputError(what, where=str(run), cure="give a run folder")


def _later(run: Path, progress: Progress, *, allowed: bool) -> list[str]:
    """Return the names of the checkpoints after `progress`, which the next save deletes; an error unless allowed."""
    later = [name for name in checkpoint_names(run) if checkpoint_step(name) > progress.step]
    if later and not allowed:
        raise InputError(
            f"{checkpoint_name(progress.step)} is followed by {', '.join(later)}, which would be deleted",
            where=str(run),
            cure="add --discard-later (the best checkpoint is kept), or resume the latest",
        )
    return later


def _give_up(run: Path, later: Sequence[str], best: str | None) -> list[str]:
    """Keep the best checkpoint if it is a later one; return lines that say what goes and what is kept."""
    lines = [f"the next save deletes {', '.join(later)}"] if later else []
    if best is not None and best in later:
        lines.append(f"the best checkpoint, {best}, is kept as {keep(run, best)} until a better one is saved")
    return lines


def _better_best(run: Path, progress: Progress, later: Sequence[str]) -> str | None:
    """Return the run's best checkpoint if it is better than all up to `progress`, which then has its loss.

    It is one of the later ones, or was kept when the run was resumed before.
    """
    best = read_pointer(run / "best")
    if best is None or not (best in later or best.startswith("kept-")) or damage(run / "checkpoints" / best):
        return None
    loss = read_checkpoint(run / "checkpoints" / best).progress.best_loss
    if loss is None or (progress.best_loss is not None and progress.best_loss <= loss):
        return None
    progress.best_loss, progress.best_step = loss, None
    return best


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
