"""`gptloom inspect`."""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from gptloom.bundle import Bundle
from gptloom.commands.surprise import colored, table, wants_color
from gptloom.commands.views import Views
from gptloom.config import DataConfig
from gptloom.data.sources import open_corpus
from gptloom.data.tokens import Tokens, prepare
from gptloom.errors import ExitCode, InputError
from gptloom.runtime import SMALL_MODEL, threads

MOST_TOKENS = 20_000
"""Tokens that are looked at; the page and the JSON of more would be of no use."""


def inspect(args: argparse.Namespace) -> int:
    """Make the views, and tell what they show."""
    bundle = Bundle.load(args.run, device=args.device, which=args.checkpoint)
    tokens, notes = _read(args, bundle)
    args.out = args.out or (Path(args.run) / "inspect" if (Path(args.run) / "checkpoints").is_dir() else Path("inspect"))
    with threads(1 if bundle.model.parameter_count() < SMALL_MODEL else None):
        views = Views(bundle, tokens, args, notes)
        for name, make in views.all().items():
            if name in args.show:
                make()
    path = views.path("inspect.json")
    text = json.dumps(views.values, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
    for note in [*views.notes, *(f"no {view} view: {reason}" for view, reason in views.missing.items())]:
        print(f"note: {note}", file=sys.stderr)
    if args.json:
        print(text)
        return ExitCode.DONE
    if views.tokens_seen:
        if wants_color(sys.stdout):
            print(colored(views.tokens_seen) + "\n")
        print("\n".join(table(views.tokens_seen)))
        print(views.summary() + "\n")
    print("\n".join(views.files.values()))
    return ExitCode.DONE


def _read(args: argparse.Namespace, bundle: Bundle) -> tuple[Tokens, list[str]]:
    """The text as tokens, read as `gptloom eval` and `gptloom sample` read it, and what the user should know about it."""
    notes = []
    if args.text is not None:
        config = DataConfig(encoding=args.encoding, on_unknown=args.on_unknown)
        corpus = open_corpus([args.text], config)
        ids, where = prepare(corpus, bundle.tokenizer, config).ids, "--text"
        notes += corpus.notes
    else:
        prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
        ids, where = bundle.tokenizer.encode(prompt, args.on_unknown), "--prompt"
    if len(ids) < 2:
        raise InputError(f"has {len(ids)} token{'s' * (len(ids) != 1)}, and a loss needs 2", where=where, cure="give a longer text")
    if len(ids) > MOST_TOKENS:
        notes.append(f"the text has {len(ids):,} tokens; the first {MOST_TOKENS:,} are looked at")
    return Tokens(ids[:MOST_TOKENS], np.zeros(1, dtype=np.int64)), notes
