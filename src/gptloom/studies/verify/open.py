"""Make the subject of the checks from a run, a bundle or a recipe."""

import json
import random
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gptloom.api import configure
from gptloom.bundle import Bundle
from gptloom.checkpoint.format import find_bundle
from gptloom.checkpoint.state import read_checkpoint
from gptloom.config.load import merge, resolve
from gptloom.config.run import DataConfig, RunConfig
from gptloom.data.pair_batches import pair_texts
from gptloom.data.sources import DATASETS, open_corpus
from gptloom.data.tokenizers import Tokenizer, make_tokenizer
from gptloom.data.tokens import Split, Tokens, cache_folder, prepare
from gptloom.devices import pick_device
from gptloom.errors import GptloomError, InputError
from gptloom.generate.task import task_of
from gptloom.model.build import build_model
from gptloom.studies.verify.subject import Subject
from gptloom.training.run_dir import find_parts, read_settings

TEXT = 100_000
"""Characters that are read of a text."""

EXCERPT = 6_000
"""Tokens of the training part that the short trainings of the checks read."""


def open_run(path: Path, *, device: str, checkpoint: str, seed: int) -> Subject:
    """Open a run folder, a checkpoint folder or a bundle.

    Raises:
        GptloomError: the path is none of these, or its files are damaged.
    """
    folder = find_bundle(path, checkpoint)
    bundle = Bundle.read(folder, device=device)
    run, notes = folder.parent.parent, []
    parts, raw = None, ""
    config = RunConfig(model=bundle.model.config, seed=seed)
    if folder.parent.name == "checkpoints" and (run / "config.toml").exists():
        config = read_settings(run, read_checkpoint(folder).config)
        try:
            parts = find_parts(run, config, bundle.tokenizer)
            raw = _beginning(run, config)
        except GptloomError as error:
            notes.append(f"the run's text is not available ({error.line()}); a synthetic one replaces it")
    else:
        notes.append(
            "a bundle has no text and no training settings; a synthetic text and the default settings replace them"
        )
    if parts is None:
        raw, parts = _made_up_for(bundle.tokenizer, config, seed)
    return Subject(
        path.name or str(path), config, bundle, True, parts, raw, _excerpt(parts, bundle.tokenizer, config), seed, notes
    )


def open_recipe(recipe: str | None, changes: Mapping[str, Any], *, seed: int) -> Subject:
    """Make a new model of a recipe, with a text: tiny Shakespeare if it is in the cache, else a synthetic one.

    Args:
        recipe: the recipe's name (default: as for `gptloom train`).
        changes: nested settings that replace the recipe's.
        seed: the seed of the model and of all other random numbers.

    Raises:
        GptloomError: there is no such recipe or device, or the recipe's tokenizer is not available.
    """
    config = configure(recipe, {}, merge(changes, {"seed": seed}), where="the command line")
    known, notes = cache_folder(config.data) / "datasets" / "shakespeare.txt", []
    pairs = task_of(config.model).pairs
    if not pairs and known.is_file() and known.stat().st_size == DATASETS["shakespeare"].size:
        text = known.read_text(encoding="utf-8")[:TEXT]
    else:
        text = made_up_pairs(seed) if pairs else made_up_text(seed)
        notes.append(
            "the text is synthetic" if pairs else "tiny Shakespeare has not been downloaded yet; the text is synthetic"
        )
    tokenizer, parts = _read(text, config, None)
    config = resolve(config, {"model": {"vocab_size": tokenizer.vocab_size}}, where="the tokenizer")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(config.model).to(pick_device(config.device)).eval()
    raw = text.replace("\t", "").replace("\n", "") if pairs else text
    return Subject(
        config.recipe,
        config,
        Bundle(model, tokenizer),
        False,
        parts,
        raw,
        _excerpt(parts, tokenizer, config),
        seed,
        notes,
    )


def made_up_text(seed: int, words: int = 12_000) -> str:
    """A synthetic text: lines of repeated words, some of them with letters of two or three bytes."""
    draw = random.Random(seed)
    known = ["".join(draw.choices("aeioubcdfghlmnprstéßλж€", k=draw.randint(2, 7))) for _ in range(400)]
    return "".join(draw.choice(known) + draw.choice("     \n") for _ in range(words))


def made_up_pairs(seed: int, count: int = 2_000) -> str:
    """Synthetic pairs: lines of a word, a tab, and the word reversed."""
    draw = random.Random(seed)
    words = ["".join(draw.choices("abcdefghé", k=draw.randint(2, 12))) for _ in range(count)]
    return "".join(f"{word}\t{word[::-1]}\n" for word in words)


def write_text(folder: Path, text: str, *, pairs: bool) -> Path:
    """Write a text as a file that `open_corpus` can read; return its path."""
    path = folder / ("pairs.tsv" if pairs else "text.txt")
    path.write_bytes(text.encode())
    return path


def _read(text: str, config: RunConfig, tokenizer: Tokenizer | None) -> tuple[Tokenizer, Split]:
    """Tokenize and split a text through the usual data pipeline, in a temporary folder."""
    pairs = task_of(config.model).pairs
    with tempfile.TemporaryDirectory() as name:
        data = DataConfig(
            cache=name, on_unknown="skip", val_fraction=config.data.val_fraction, sampling=config.data.sampling
        )
        corpus = open_corpus([str(write_text(Path(name), text, pairs=pairs))], data, pairs=pairs)
        tokenizer = tokenizer or make_tokenizer(config.data.tokenizer, corpus)
        parts = task_of(config.model).split(prepare(corpus, tokenizer, data), data)
        return tokenizer, Split(_copied(parts.train), _copied(parts.val))


def _made_up_for(tokenizer: Tokenizer, config: RunConfig, seed: int) -> tuple[str, Split]:
    """Make a text of random tokens of a tokenizer; return the raw text (empty) and the split."""
    draw = random.Random(seed)

    def word() -> str:
        return (
            tokenizer.decode([draw.randrange(tokenizer.vocab_size) for _ in range(draw.randint(2, 8))])
            .replace("\t", "")
            .replace("\n", "")
        )

    if task_of(config.model).pairs:
        pairs = [pair for pair in ((word(), word()) for _ in range(2_000)) if all(pair)]
        return "", _read("".join(f"{one}\t{other}\n" for one, other in pairs), config, tokenizer)[1]
    text = tokenizer.decode([draw.randrange(tokenizer.vocab_size) for _ in range(20_000)])
    return "", _read(text, config, tokenizer)[1]


def _copied(tokens: Tokens) -> Tokens:
    """Copy memory-mapped tokens, so that their file can be deleted."""
    return Tokens(np.array(tokens.ids), np.array(tokens.document_starts))


def _beginning(run: Path, config: RunConfig) -> str:
    """The first characters of a run's text.

    Empty if the tokenizer was allowed to skip characters, or if the text came from standard input.
    """
    texts = json.loads((run / "run.json").read_text(encoding="utf-8"))["texts"]
    if config.data.on_unknown != "error" or "-" in texts:
        return ""
    pieces: Iterator[tuple[str, bool]] = open_corpus(texts, config.data, pairs=task_of(config.model).pairs).pieces()
    found = ""
    for piece, _ in pieces:
        found += piece[:TEXT]
        if len(found) >= TEXT:
            break
    return found


def _excerpt(parts: Split, tokenizer: Tokenizer, config: RunConfig) -> str:
    """Decode the beginning of the training part.

    Raises:
        InputError: a text of pairs has no pairs.
    """
    if not task_of(config.model).pairs:
        return tokenizer.decode(parts.train.ids[:EXCERPT])
    lines = [
        f"{tokenizer.decode(source)}\t{tokenizer.decode(target)}\n"
        for source, target in pair_texts(parts.train)[: EXCERPT // 20]
    ]
    if not lines:
        raise InputError("has no pairs", where="the text", cure="give lines of SOURCE<tab>TARGET")
    return "".join(lines)
