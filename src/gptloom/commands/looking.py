"""`gptloom inspect`."""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from gptloom.bundle import Bundle
from gptloom.commands.aligning import Alignment
from gptloom.commands.output import Output
from gptloom.commands.prompting import read_prompt
from gptloom.commands.surprise import colored, table, wants_color
from gptloom.commands.views import Views
from gptloom.config.run import DataConfig
from gptloom.data.sources import open_corpus
from gptloom.data.splits import Tokens, prepare
from gptloom.devices import SMALL_MODEL, threads
from gptloom.errors import ExitCode, InputError
from gptloom.generate.task import reads_pairs
from gptloom.plots.labels import TokenView

MOST_TOKENS = 20_000
"""Tokens that are looked at; the page and the JSON of more would be of no use."""


def inspect(args: argparse.Namespace) -> int:
    """Make the views, and tell what they show."""
    bundle = Bundle.load(args.run, device=args.device, which=args.checkpoint)
    args.out = args.out or (
        Path(args.run) / "inspect" if (Path(args.run) / "checkpoints").is_dir() else Path("inspect")
    )
    if reads_pairs(bundle.model.config):
        if args.prompt is None:
            raise InputError(
                "an encoder-decoder is shown translating a prompt", where="--text", cure="give the source with --prompt"
            )
        alignment = Alignment(bundle, bundle.tokenizer.encode(read_prompt(args.prompt), args.on_unknown).tolist(), args)
        alignment.show()
        return _report(alignment, alignment.tokens_seen, alignment.summary(), args)
    tokens, notes = _read(args, bundle)
    with threads(1 if bundle.model.parameter_count() < SMALL_MODEL else None):
        views = Views(bundle, tokens, args, notes)
        for name, make in views.all().items():
            if name in args.show:
                make()
    return _report(views, views.tokens_seen, views.summary() if views.tokens_seen else "", args)


def _report(output: Output, tokens: list[TokenView], summary: str, args: argparse.Namespace) -> int:
    """Write inspect.json, and say what there is."""
    path = output.path("inspect.json")
    text = json.dumps(output.values, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
    for note in [*output.notes, *(f"no {view} view: {reason}" for view, reason in output.missing.items())]:
        print(f"note: {note}", file=sys.stderr)
    if args.json:
        print(text)
        return ExitCode.DONE
    if tokens:
        if wants_color():
            print(colored(tokens) + "\n")
        print("\n".join(table(tokens)))
        print(summary + "\n")
    print("\n".join(output.files.values()))
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
        ids, where = bundle.tokenizer.encode(read_prompt(args.prompt), args.on_unknown), "--prompt"
    if len(ids) < 2:
        raise InputError(
            f"has {len(ids)} token{'s' * (len(ids) != 1)}, and a loss needs 2", where=where, cure="give a longer text"
        )
    if len(ids) > MOST_TOKENS:
        notes.append(f"the text has {len(ids):,} tokens; the first {MOST_TOKENS:,} are looked at")
    return Tokens(ids[:MOST_TOKENS], np.zeros(1, dtype=np.int64)), notes
