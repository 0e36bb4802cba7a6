"""`gptloom import`."""

import argparse
import json
import tempfile
from pathlib import Path

from gptloom.bundle import Bundle
from gptloom.config.run import DataConfig
from gptloom.data.sources import open_corpus
from gptloom.data.tokenizers import Tokenizer, make_tokenizer, ready_tokenizer
from gptloom.errors import ConfigError, ExitCode, InputError, MachineError
from gptloom.interop.nanogpt import import_nanogpt
from gptloom.io.atomic import publish
from gptloom.io.read import regular_size

_PADDING = 256
"""More rows than a vocabulary is padded with: to a multiple of 64 or 128."""


def import_model(args: argparse.Namespace) -> int:
    """Read the file, find its tokenizer, and write a bundle."""
    if (args.text is None) == (args.tokenizer is None):
        what = (
            "how its ids become text is not in a .pt file"
            if args.text is None
            else "--text and --tokenizer exclude one another"
        )
        raise ConfigError(
            what,
            where="gptloom import",
            cure="give --text FILE for a model of characters, or --tokenizer tiktoken:gpt2",
        )
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise InputError("already exists and is not empty", where=str(args.out), cure="choose another folder")
    regular_size(args.file)
    tokenizer = (
        ready_tokenizer(args.tokenizer)
        if args.text is None
        else make_tokenizer("char", open_corpus(args.text, DataConfig()))
    )
    model = import_nanogpt(args.file, n_head=args.n_head, activation=args.mlp)
    bundle = Bundle(model.eval(), _fitting(tokenizer, model.config.vocab_size, args))
    _write(bundle, args.out)
    if args.json:
        shape = model.config.model_dump(mode="json")
        print(
            json.dumps(
                {
                    "bundle": str(args.out),
                    "parameters": model.parameter_count(),
                    "tokenizer": tokenizer.kind,
                    "model": shape,
                }
            )
        )
    else:
        config = model.config
        print(
            f"{args.out}: {model.parameter_count():,} parameters, {config.n_layer} layers, {config.n_head} heads, {config.n_embd} wide"
        )
        print(f"next: gptloom sample {args.out} --prompt ...")
    return ExitCode.DONE


def _fitting(tokenizer: Tokenizer, vocab_size: int, args: argparse.Namespace) -> Tokenizer:
    """The tokenizer, with ids that stand for nothing where the model's table has been padded."""
    unused = vocab_size - tokenizer.vocab_size
    if args.text is not None and unused:
        what = f"the text has {tokenizer.vocab_size} different characters, and the model was trained with {vocab_size}"
        raise InputError(
            what, where=", ".join(args.text), cure="give the whole text that it was trained on; line ends must be LF"
        )
    if not 0 <= unused < _PADDING:
        what = f"has {tokenizer.vocab_size:,} tokens, and the model {vocab_size:,}"
        raise InputError(what, where=args.tokenizer, cure="give the tokenizer that the model was trained with")
    return tokenizer.padded(unused) if unused else tokenizer


def _write(bundle: Bundle, out: Path) -> None:
    """Write the bundle beside its place, and move it there when it is whole."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as name:
            folder = Path(name) / "bundle"
            folder.mkdir()
            bundle.save(folder)
            publish(folder, out)
    except OSError as error:
        raise MachineError(
            f"cannot be written: {error.strerror or error}",
            where=str(out),
            cure="free some disk space, or choose another folder",
        ) from None
