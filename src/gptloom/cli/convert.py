"""`gptloom import`: convert a model file of another program to a bundle."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from gptloom.cli.flags import loading, make_parser
from gptloom.config.run import DataConfig
from gptloom.errors import ConfigError, ExitCode, InputError, MachineError, cure_for

if TYPE_CHECKING:
    from gptloom.bundle import Bundle
    from gptloom.data.tokenizers import Tokenizer

IMPORT = """\
FILE.pt is nanoGPT's ckpt.pt, or a state dictionary of nanoGPT or minGPT that torch.save wrote. A separate
process reads it, with bounds on memory and time. No code in the file is run. OUT is a bundle; use it with
`gptloom sample OUT` and `gptloom eval OUT --text FILE`.

The file does not contain the tokenizer. nanoGPT's meta.pkl is not read, because a pickle can run any code.
For a model of characters, give the text that it was trained on (--text): its sorted alphabet is the vocabulary.
For GPT-2's tokens, give --tokenizer tiktoken:gpt2. Padding rows of the vocabulary are kept (50,257 becomes
50,304); they have no text.

gelu is exact, as in nanoGPT since 17 May 2023. gelu-tanh is GPT-2's approximation, as in minGPT and in older
versions of nanoGPT."""

_PADDING = 256
"""Limit of padding rows; vocabularies are usually padded to a multiple of 64 or 128."""


def import_command(words: list[str]) -> int:
    """Import a model of nanoGPT or minGPT."""
    parser = make_parser("import", "FILE.pt OUT", import_command, epilog=IMPORT)
    parser.add_argument("file", metavar="FILE.pt", type=Path, help="a file that torch.save wrote")
    parser.add_argument("out", metavar="OUT", type=Path, help="a new folder for the bundle")
    about = "for a model of characters: the text that it was trained on"
    parser.add_argument("--text", metavar="TEXT", action="append", help=about)
    about = "tiktoken:NAME, or the path of a tokenizer.json or .model file"
    parser.add_argument("--tokenizer", metavar="NAME", help=about)
    about = "number of heads, if the file does not contain it (minGPT)"
    parser.add_argument("--n-head", metavar="N", type=int, help=about)
    about = "activation (default: gelu for nanoGPT's ckpt.pt, else gelu-tanh)"
    parser.add_argument("--mlp", choices=("gelu", "gelu-tanh"), help=about)
    args = parser.parse(words)
    with loading():
        from gptloom.bundle import Bundle
        from gptloom.data.sources import open_corpus
        from gptloom.data.tokenizers import make_tokenizer, ready_tokenizer
        from gptloom.files import regular_size
        from gptloom.interop.nanogpt import import_nanogpt

    _check(args)
    regular_size(args.file)
    if args.text is None:
        tokenizer = ready_tokenizer(args.tokenizer)
    else:
        tokenizer = make_tokenizer("char", open_corpus(args.text, DataConfig()))
    model = import_nanogpt(args.file, n_head=args.n_head, activation=args.mlp)
    config, count = model.config, model.parameter_count()
    _write(Bundle(model.eval(), _padded(tokenizer, config.vocab_size, args)), args.out)
    if args.json:
        found = {"bundle": str(args.out), "parameters": count, "tokenizer": tokenizer.kind}
        print(json.dumps(found | {"model": config.model_dump(mode="json")}))
    else:
        shape = f"{config.n_layer} layers, {config.n_head} heads, {config.n_embd} wide"
        print(f"{args.out}: {count:,} parameters, {shape}")
        print(f"next: gptloom sample {args.out} --prompt ...")
    return ExitCode.DONE


def _check(args: argparse.Namespace) -> None:
    """Raise errors that can be found without reading the file."""
    if (args.text is None) == (args.tokenizer is None):
        what = "--text and --tokenizer exclude one another"
        if args.text is None:
            what = "a .pt file does not contain the tokenizer"
        cure = "give --text FILE for a model of characters, or --tokenizer tiktoken:gpt2"
        raise ConfigError(what, where="gptloom import", cure=cure)
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise InputError("already exists and is not empty", where=str(args.out), cure="choose another folder")


def _padded(tokenizer: Tokenizer, vocab_size: int, args: argparse.Namespace) -> Tokenizer:
    """Return the tokenizer; if the model's table has padding rows, add an id without text for each."""
    unused = vocab_size - tokenizer.vocab_size
    if args.text is not None and unused:
        what = f"the text has {tokenizer.vocab_size} different characters, and the model was trained with {vocab_size}"
        cure = "give the complete text that it was trained on; line ends must be LF"
        raise InputError(what, where=", ".join(args.text), cure=cure)
    if not 0 <= unused < _PADDING:
        what = f"has {tokenizer.vocab_size:,} tokens, and the model {vocab_size:,}"
        raise InputError(what, where=args.tokenizer, cure="give the tokenizer that the model was trained with")
    return tokenizer.padded(unused) if unused else tokenizer


def _write(bundle: Bundle, out: Path) -> None:
    """Write the bundle into a temporary folder on the same disk, then rename it."""
    from gptloom.files import publish

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as name:
            folder = Path(name) / "bundle"
            folder.mkdir()
            bundle.save(folder)
            publish(folder, out)
    except OSError as error:
        what = f"cannot be written: {error.strerror or error}"
        cure = cure_for(error, "free some disk space, or choose another folder")
        raise MachineError(what, where=str(out), cure=cure) from None
