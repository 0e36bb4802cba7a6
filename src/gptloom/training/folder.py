"""The run folder: made before the first step, and read again to continue."""

import hashlib
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from gptloom.config import DataConfig, RunConfig
from gptloom.data.sources import open_corpus
from gptloom.data.tokenizers import Tokenizer
from gptloom.data.tokens import TokenStore, open_store, prepare
from gptloom.errors import InputError, MachineError
from gptloom.plots import draw_losses
from gptloom.runtime import describe_machine
from gptloom.settings import to_toml
from gptloom.training.trainer import Progress


def next_folder(stem: str) -> Path:
    """runs/STEM-N for the first N that is free."""
    number = 1
    while (folder := Path("runs") / f"{stem}-{number}").exists():
        number += 1
    return folder


def create_run(run: Path, texts: Sequence[str], config: RunConfig, store: TokenStore, tokenizer: Tokenizer, device: torch.device) -> None:
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


def find_tokens(run: Path, config: DataConfig, tokenizer: Tokenizer) -> TokenStore:
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


def draw_history(run: Path, config: RunConfig, progress: Progress) -> list[dict[str, Any]]:
    """Draw loss.png from metrics.jsonl; returns the lines."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    curve = {event: [(line["step"], line["loss"]) for line in lines if line["event"] == event] for event in ("train", "evaluation")}
    best = (progress.best_step, progress.best_loss) if progress.best_step is not None and progress.best_loss is not None else None
    draw_losses(run / "loss.png", curve["train"], curve["evaluation"], title=run.name, uniform=math.log(config.model.vocab_size), best=best)
    return lines
