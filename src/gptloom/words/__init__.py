"""What the command line's words mean, a module a group of commands.

Nothing here imports torch until a command has been read.
"""

import argparse
import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gptloom.cli.flags import Parser

TEXTS = "a file, a folder, a glob, - for standard input, or shakespeare; .jsonl, .csv and .tsv are read by field"
RUN = "a run folder, a checkpoint folder or a bundle"
NUMBERS = """\
Losses are nats per token: the mean of -ln p(next token); a uniform guess costs ln(vocabulary). bits per byte is the same loss
per UTF-8 byte of text, which compares across tokenizers. Perplexity is exp(loss). The validation loss is always that of the
whole validation split, in fixed windows; the one reported at the end is the best checkpoint's."""


@contextmanager
def loading() -> Iterator[None]:
    """While a command's modules are loaded, Python's garbage collector rests: it would look for a tenth of the time, and find nothing.

    Nor does it look at them later, unless this process had loaded PyTorch before: then there may be garbage among them.
    """
    first, enabled = "torch" not in sys.modules, gc.isenabled()
    gc.disable()
    try:
        yield
        if first:
            gc.freeze()
    finally:
        if enabled:
            gc.enable()


def make_parser(name: str, subject: str, command: Callable[[list[str]], int], epilog: str = "") -> Parser:
    """A parser with the flags that every command has; `subject` is what the usage line asks for."""
    usage = f"gptloom {name} {subject} [flags]".replace("  ", " ")
    form = argparse.RawDescriptionHelpFormatter
    parser = Parser(
        prog=f"gptloom {name}", usage=usage, description=command.__doc__, epilog=epilog, formatter_class=form
    )
    parser.add_argument("--json", action="store_true", help="the result as one JSON object on standard output")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def add_model_flags(parser: Parser) -> None:
    """Which checkpoint of a run, where it computes, and what to do with unknown characters."""
    parser.add_argument(
        "--checkpoint", metavar="NAME", default="best", help="of a run folder: best, latest or step-N [best]"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps [auto]")
    choices = ("error", "skip", "replace")
    parser.add_argument(
        "--on-unknown", choices=choices, default="error", help="characters that the tokenizer does not have [error]"
    )
