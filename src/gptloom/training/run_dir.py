"""The run folder: its lock, its creation before the first step, and reading it again to continue."""

import hashlib
import itertools
import json
import math
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from gptloom.bundle import Bundle
from gptloom.checkpoint.format import find_bundle
from gptloom.checkpoint.state import Progress, read_checkpoint
from gptloom.config.load import parse, read_toml, to_toml
from gptloom.config.run import RunConfig
from gptloom.data.sources import open_corpus
from gptloom.data.tokenizers import Tokenizer
from gptloom.data.tokens import Split, Tokens, TokenStore, open_store, prepare
from gptloom.devices import describe_machine
from gptloom.errors import ConfigError, DeniedError, GptloomError, GptloomWarning, InputError, MachineError, cure_for
from gptloom.files import logged, read_json, replace_text
from gptloom.generate.task import task_of
from gptloom.plots.core import draw_losses

LOCK = ".lock"


@contextmanager
def only_writer(run: Path) -> Iterator[None]:
    """Hold the run folder's lock, so that a run has one writer.

    The operating system releases the lock when the process ends, even if it is killed.

    Raises:
        InputError: another process holds the lock.
        MachineError: the folder cannot be written, or its file system has no locks.
    """
    lock = FileLock(run / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(
            "another process is training this run", where=str(run), cure="wait until it has ended, or stop it"
        ) from None
    except (OSError, NotImplementedError) as error:
        what = f"the run folder cannot be locked: {getattr(error, 'strerror', None) or error}"
        raise MachineError(what, where=str(run), cure=cure_for(error, "choose another folder with --run")) from None
    try:
        yield
    finally:
        lock.release()


def next_folder(stem: str) -> Path:
    """Return runs/STEM-N with the first free N."""
    return next(folder for number in itertools.count(1) if not (folder := Path("runs") / f"{stem}-{number}").exists())


def make_folder(run: Path | None, stem: str) -> Path:
    """Create a run's folder: `run`, or the next free folder under runs/.

    Raises:
        MachineError: the folder cannot be created.
    """
    try:
        while run is None:
            folder = next_folder(stem)
            with suppress(FileExistsError):  # another process created it in the meantime
                folder.mkdir(parents=True)
                return folder
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(run or Path("runs"), error) from None
    return run


def check_empty(run: Path) -> None:
    """Check that a new run's folder is empty or does not exist.

    Raises:
        InputError: the folder has other contents.
    """
    if run.exists() and (not run.is_dir() or any(path.name != LOCK for path in run.iterdir())):
        resume = f", or continue it with `gptloom resume {run}`" if (run / "run.json").exists() else ""
        raise InputError("already exists and is not empty", where=str(run), cure=f"choose another --run{resume}")


def code_hash() -> str:
    """Return the SHA-256 of gptloom's source."""
    sources = Path(__file__).parent.parent.rglob("*.py")
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(sources))).hexdigest()


def create_run(
    run: Path,
    config: RunConfig,
    tokenizer: Tokenizer,
    *,
    texts: Sequence[str],
    store: TokenStore,
    val_text_sha256: str | None,
    device: str,
) -> None:
    """Write config.toml, the tokenizer and run.json into the run folder.

    Args:
        run: the folder.
        config: all settings.
        tokenizer: the tokenizer.
        texts: the texts as the user named them.
        store: the token file of the texts.
        val_text_sha256: hash of a separate validation text, or None.
        device: name of the device.

    Raises:
        MachineError: the folder cannot be written.
    """
    about = {
        "command": sys.argv,
        "texts": [str(Path(text).absolute()) if Path(text).exists() else text for text in texts],
        "text_sha256": store.text_sha256,
        "val_text_sha256": val_text_sha256,
        "tokens": str(store.path.absolute()),
        "tokenizer": tokenizer.fingerprint,
        "seed": config.seed,
        "device": device,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "code_sha256": code_hash(),
        **describe_machine(),
    }
    try:
        (run / "checkpoints").mkdir(exist_ok=True)
        replace_text(run / "config.toml", to_toml(config))
        tokenizer.save(run)
        replace_text(run / "run.json", json.dumps(about, indent=2) + "\n")
    except OSError as error:
        raise _unwritable(run, error) from None


def note_passes(run: Path, *, path: str, why: str | None, deviation: float | None) -> None:
    """Add the kind of training passes to run.json.

    Args:
        run: the run folder.
        path: fast or reference.
        why: the reason if the passes are not fast.
        deviation: deviation between fast and reference passes, or None if it was not measured.

    Raises:
        MachineError: the folder cannot be written.
    """
    about = read_json(run / "run.json") | {"path": path, "why": why, "deviation": deviation}
    try:
        replace_text(run / "run.json", json.dumps(about, indent=2) + "\n")
    except OSError as error:
        raise _unwritable(run, error) from None


def _unwritable(run: Path, error: OSError) -> MachineError:
    return MachineError(
        f"the run folder cannot be written: {error.strerror or error}",
        where=str(run),
        cure=cure_for(error, "choose another folder with --run"),
    )


def make_parts(config: RunConfig, store: TokenStore, tokenizer: Tokenizer) -> tuple[Split, str | None]:
    """Return the training and validation parts, and the hash of a separate validation text (or None)."""
    val_text, task = config.data.val_text, task_of(config.model)
    val_store = (
        None
        if val_text is None
        else prepare(open_corpus([val_text], config.data, pairs=task.pairs), tokenizer, config.data)
    )
    return task.split(store, config.data, val_store), None if val_store is None else val_store.text_sha256


def find_parts(run: Path, config: RunConfig, tokenizer: Tokenizer) -> Split:
    """Return the parts of a run from its token file, or from its text, after checking that nothing has changed.

    Raises:
        InputError: the text, the validation text or the tokenizer is missing or has changed.
    """
    path = run / "run.json"
    try:
        about = read_json(path)
        texts, sha256, tokens = [str(text) for text in about["texts"]], about["text_sha256"], Path(about["tokens"])
        fingerprint, val_sha256 = about["tokenizer"], about["val_text_sha256"]
    except DeniedError:
        raise
    except (InputError, KeyError, TypeError):
        raise InputError(
            "is missing or damaged, so the run's text is not known", where=str(path), cure="start a new run"
        ) from None
    if tokenizer.fingerprint != fingerprint:
        raise InputError("the tokenizer has changed since the run began", where=str(run), cure="start a new run")
    store = _stored(tokens, sha256, fingerprint)
    if store is None:
        if "-" in texts:
            raise InputError(
                "the text came from standard input, and its token file is missing",
                where=str(tokens),
                cure="start a new run",
            )
        store = prepare(open_corpus(texts, config.data, pairs=task_of(config.model).pairs), tokenizer, config.data)
    parts, found = make_parts(config, store, tokenizer)
    if store.text_sha256 != sha256 or found != val_sha256:
        changed = ", ".join(texts) if store.text_sha256 != sha256 else str(config.data.val_text)
        raise InputError(
            "the text has changed since the run began", where=changed, cure="restore it, or start a new run"
        )
    return parts


def validation_split(path: str | Path, *, device: str = "auto", checkpoint: str = "best") -> tuple[Bundle, Tokens]:
    """Load a run's checkpoint and its validation tokens.

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
            "is not part of a run, so it has no validation split",
            where=str(path),
            cure="give a text with --text FILE",
        )
    config = read_settings(run, read_checkpoint(folder).config)
    bundle = Bundle.read(folder, device=device)
    return bundle, find_parts(run, config, bundle.tokenizer).val


def _stored(path: Path, text_sha256: str, fingerprint: str) -> TokenStore | None:
    """Open a token file; None if it is missing, damaged or of another text."""
    if not path.exists():
        return None
    try:
        store = open_store(path)
    except InputError:
        return None
    return store if (store.text_sha256, store.tokenizer_fingerprint) == (text_sha256, fingerprint) else None


def read_history(run: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl with losses; a warning and no lines if it cannot be read."""
    path = run / "metrics.jsonl"
    try:
        return [
            line
            for line in logged(path)
            if line.get("event") in _CURVES and _is_point(line.get("step"), line.get("loss"))
        ]
    except OSError as error:
        warnings.warn(f"{path}: cannot be read: {error.strerror or error}", GptloomWarning, stacklevel=2)
        return []


def draw_history(run: Path, lines: Sequence[Mapping[str, Any]], config: RunConfig, progress: Progress) -> None:
    """Draw loss.png; a warning if it cannot be written."""
    curve = {event: [(line["step"], line["loss"]) for line in lines if line["event"] == event] for event in _CURVES}
    best = (
        (progress.best_step, progress.best_loss)
        if progress.best_step is not None and progress.best_loss is not None
        else None
    )
    try:
        draw_losses(
            run / "loss.png",
            curve["train"],
            curve["evaluation"],
            title=run.name,
            uniform=math.log(config.model.vocab_size),
            best=best,
        )
    except OSError as error:
        warnings.warn(f"{run / 'loss.png'}: cannot be drawn: {error.strerror or error}", GptloomWarning, stacklevel=2)


def _is_point(step: Any, loss: Any) -> bool:
    return isinstance(step, int) and isinstance(loss, int | float)


_CURVES = ("train", "evaluation")


_FIXED = ("model", "data", "seed", "recipe", "train.optimizer")


def read_settings(run: Path, kept: RunConfig | None) -> RunConfig:
    """Read the settings of a run from its config.toml, which the user may have edited.

    Args:
        run: the run folder.
        kept: the checkpoint's copy, which replaces a damaged file.

    Raises:
        GptloomError: the file cannot be read, and there is no copy.

    Warns:
        GptloomWarning: the copy is used.
    """
    path = run / "config.toml"
    try:
        return parse(RunConfig, read_toml(path), where=str(path))
    except GptloomError as error:
        if kept is None or isinstance(error, DeniedError):
            raise
        warnings.warn(
            f"{error.line()}; the settings that the checkpoint was written with are used instead",
            GptloomWarning,
            stacklevel=2,
        )
        return kept


def check_changes(before: RunConfig, after: RunConfig) -> list[str]:
    """Return a line for every setting that differs.

    Raises:
        ConfigError: the weights, the data order or the optimizer's state depend on a setting that differs.
    """
    lines = []
    for key, *values in _differences(before.model_dump(), after.model_dump()):
        old, new = ("unset" if value is None else value for value in values)
        if {key, key.partition(".")[0]} & set(_FIXED) and key != "data.cache":
            raise ConfigError(
                f"{key} was {old} when the run began and cannot become {new}", where="resume", cure="start a new run"
            )
        lines.append(f"{key} was {old} and is now {new}")
    return lines


def code_notes(run: Path) -> list[str]:
    """Return a line each if gptloom's code or PyTorch's version has changed since the run began."""
    try:
        about = read_json(run / "run.json")
        pairs = [
            ("gptloom's code", about["code_sha256"], code_hash()),
            ("PyTorch", about["versions"]["torch"], describe_machine()["versions"]["torch"]),
        ]
    except (InputError, KeyError, TypeError):
        return []  # `find_parts` reports a damaged run.json
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
