"""From a configuration and a text to a finished run folder, and on from where one stopped.

What has changed since a run began: settings that may, settings that may not, and the code.
"""

import importlib.util
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from gptloom.bundle import Bundle
from gptloom.checkpoint.find import checkpoint_name, checkpoint_names, checkpoint_step, find_bundle
from gptloom.checkpoint.state import Progress, State, read_checkpoint
from gptloom.config.load import merge, parse, read_toml, to_toml
from gptloom.config.run import CUSTOM, RunConfig
from gptloom.data.sources import open_corpus
from gptloom.data.tokenizers import Tokenizer, load_tokenizer, make_tokenizer
from gptloom.data.tokens import Tokens, prepare
from gptloom.devices import describe_machine, pick_device, thread_count, threads
from gptloom.distributed.launch import launch
from gptloom.errors import ConfigError, GptloomError, GptloomWarning, InputError
from gptloom.files import read_json, recover, replace_text, set_aside
from gptloom.generate.task import end_of_text, reads_pairs
from gptloom.model.build import build_model, check_memory
from gptloom.training.optim import OptimizerFactory
from gptloom.training.progress import Display, make_display
from gptloom.training.run_dir import (
    check_empty,
    code_hash,
    create_run,
    find_parts,
    make_folder,
    make_parts,
    only_writer,
)
from gptloom.training.setup import Result, Session


def train(
    texts: Sequence[str],
    config: RunConfig,
    *,
    run: Path | None = None,
    display: Display | None = None,
    optimizer: OptimizerFactory | None = None,
) -> Result:
    """Train a model on texts, from the beginning.

    Args:
        texts: files, folders, globs, `-` or `shakespeare`.
        config: all settings; the vocabulary's size is taken from the tokenizer.
        run: a new or empty folder for the run; by default the next free name under runs/.
        display: who shows the progress (default: standard error).
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
    corpus = open_corpus(texts, config.data, pairs=reads_pairs(config.model))
    tokenizer = make_tokenizer(config.data.tokenizer, corpus)
    if reads_pairs(config.model):
        end_of_text(tokenizer)
    store = prepare(corpus, tokenizer, config.data)
    for note in corpus.notes:
        display.say(f"note: {note}")
    parts, val_text_sha256 = make_parts(config, store, tokenizer)
    known = {
        "model": {"vocab_size": tokenizer.vocab_size},
        "data": {"val_text": config.data.val_text and str(Path(config.data.val_text).absolute())},
    }
    config = parse(RunConfig, merge(config.model_dump(), known), where="the tokenizer")
    bundle = begin(config, tokenizer, device)
    run = make_folder(run, f"{corpus.name}-{config.recipe}")
    with only_writer(run):
        check_empty(run)
        create_run(
            run, config, tokenizer, texts=texts, store=store, val_text_sha256=val_text_sha256, device=str(device)
        )
        with threads(thread_count(config)), launch(run, config.train.ranks, device) as group:
            session = Session(run, config, bundle, parts, device, display, group, optimizer)
            return session.go(Progress(), None, {})


def begin(config: RunConfig, tokenizer: Tokenizer, device: torch.device) -> Bundle:
    """The untrained model, a function of the settings alone."""
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
        display: who shows the progress.

    Raises:
        GptloomError: no such run, it has finished, its text has changed, or a setting cannot change any more.
    """
    display = display or make_display()
    if not run.is_dir():
        raise InputError("there is no such run folder", where=str(run), cure="check the path")
    with only_writer(run):
        for place in (run, run / "diverged"):
            recover(place / "checkpoints")
        folder, state = _last_state(run, checkpoint)
        _point(run, folder, state.progress)
        config = change(read_settings(run, state.config), changes)
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
            if (
                checkpoint_step(name) > progress.step
            ):  # what came after an older checkpoint is given up as soon as there is a new one
                set_aside(run / "checkpoints" / name, checkpoint_name(progress.step))
        display.say(f"continuing {run} from step {progress.step:,}")
        with threads(thread_count(config)), launch(run, config.train.ranks, device, folder) as group:
            return Session(run, config, bundle, parts, device, display, group).go(progress, horizon, state.optimizer)


def _point(run: Path, folder: Path | None, progress: Progress) -> None:
    """Name the latest and the best: a killed writer may not have come to it, and an older checkpoint knows nothing of a best one that came after it."""
    if folder is not None and folder.parent.parent == run:
        replace_text(run / "latest", folder.name + "\n")
    if progress.best_step is not None and (run / "checkpoints" / checkpoint_name(progress.best_step)).exists():
        replace_text(run / "best", checkpoint_name(progress.best_step) + "\n")


def _last_state(run: Path, checkpoint: str) -> tuple[Path | None, State]:
    """The checkpoint to go on from; or, where a run was killed before its first, none and the beginning."""
    if checkpoint_names(run) or checkpoint != "latest" or not (run / "run.json").exists():
        folder = find_bundle(run, checkpoint)
        return folder, read_checkpoint(folder)
    return None, State(read_settings(run, None), Progress(), None, {})


def validation_split(path: str | Path, *, device: str = "auto", checkpoint: str = "best") -> tuple[Bundle, Tokens]:
    """A run's checkpoint, and the run's own validation split.

    Args:
        path: a run folder, or a checkpoint inside one.
        device: see `devices.pick_device`.
        checkpoint: of a run folder: best, latest or a name.

    Raises:
        InputError: the folder is not part of a run, or its text is gone or has changed.
    """
    folder = find_bundle(Path(path), checkpoint)
    run = folder.parent.parent
    if not (run / "run.json").exists():
        raise InputError(
            "is not part of a run, so it has no validation split of its own",
            where=str(path),
            cure="give a text with --text FILE",
        )
    config = read_settings(run, read_checkpoint(folder).config)
    bundle = Bundle.read(folder, device=device)
    return bundle, find_parts(run, config, bundle.tokenizer).val


def _prepare_machine(config: RunConfig) -> torch.device:
    """Check what can be checked before any text is read."""
    if config.train.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise ConfigError(
            "TensorBoard is not installed",
            where="--train.tensorboard",
            cure='pip install "gptloom[track]", or leave the flag out',
        )
    device = pick_device(config.device)
    check_memory(config.model, device, copies=4, more=16 * config.train.batch_size * config.model.block_size)
    return device


_LENGTHS = ("steps", "minutes", "epochs")
_FIXED = ("model", "data", "seed", "recipe", "train.optimizer")


def read_settings(run: Path, kept: RunConfig | None) -> RunConfig:
    """The settings in a run's config.toml, which the user may have edited; where it is damaged, the checkpoint's own copy.

    Raises:
        GptloomError: it cannot be read, and there is no copy.

    Warns:
        GptloomWarning: the copy is used.
    """
    path = run / "config.toml"
    try:
        return parse(RunConfig, read_toml(path), where=str(path))
    except GptloomError as error:
        if kept is None:
            raise
        warnings.warn(
            f"{error.line()}; the settings that the checkpoint was written with are used instead",
            GptloomWarning,
            stacklevel=2,
        )
        return kept


def change(settings: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """Settings with changes (nested) laid over them; a new length for the run replaces the old."""
    values = settings.model_dump()
    if set(_LENGTHS) & set(changes.get("train", {})):
        values["train"] |= dict.fromkeys(_LENGTHS)
    return parse(RunConfig, merge(values, changes), where="resume")


def check_changes(before: RunConfig, after: RunConfig) -> list[str]:
    """A line for every setting that differs.

    Raises:
        ConfigError: what the weights, the data order or the optimizer's memory follow from differs.
    """
    lines = []
    for key, old, new in _differences(before.model_dump(), after.model_dump()):
        if {key, key.partition(".")[0]} & set(_FIXED) and key != "data.cache":
            raise ConfigError(
                f"{key} was {old} when the run began and cannot become {new}", where="resume", cure="start a new run"
            )
        lines.append(f"{key} was {old} and is now {new}")
    return lines


def same_length(before: RunConfig, after: RunConfig) -> bool:
    """Whether both say the same about how long the run is."""
    return all(getattr(before.train, name) == getattr(after.train, name) for name in _LENGTHS)


def code_notes(run: Path) -> list[str]:
    """Lines about gptloom's code and PyTorch, where they are not what the run began with: then the bits may differ."""
    try:
        about = read_json(run / "run.json")
        pairs = [
            ("gptloom's code", about["code_sha256"], code_hash()),
            ("PyTorch", about["versions"]["torch"], describe_machine()["versions"]["torch"]),
        ]
    except (InputError, KeyError, TypeError):
        return []  # whoever needs run.json says what is wrong with it
    return [
        f"{name} is not what the run began with, so its numbers may differ in the last digits"
        for name, old, new in pairs
        if old != new
    ]


def _differences(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted key, old, new) for every setting that differs."""
    found = []
    for key, old in before.items():
        new = after[key]
        if isinstance(old, Mapping):
            found += _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append((prefix + key, old, new))
    return found
