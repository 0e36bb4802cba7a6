"""Helpers of all commands: the parser, flags made from the typed fields of a configuration, and lazy imports.

argparse reads the words; only the fields validate the values. This module imports neither torch nor numpy.
"""

import argparse
import gc
import re
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

from gptloom.config.base import Config, field_names, flatten
from gptloom.config.load import bare_names, recipe_names, resolve
from gptloom.config.run import RunConfig
from gptloom.errors import ConfigError, InputError, nearest

TEXTS = "a file, a folder, a glob, - for standard input, or shakespeare; .jsonl, .csv and .tsv are read by field"
RUN = "a run folder, a checkpoint folder or a bundle"
NUMBERS = """\
Losses are in nats per token: the mean of -ln p(next token). A uniform guess costs ln(vocabulary).
bits per byte is the same loss per UTF-8 byte of text; use it to compare models with different tokenizers.
Perplexity is exp(loss). The validation loss is measured on the whole validation split, in fixed windows.
The last lines of a run report the validation loss of the best checkpoint."""

LONGEST = 1 << 24
"""Limit of a prompt from standard input, in bytes. The model sees the last window of it."""


@contextmanager
def loading() -> Iterator[None]:
    """Disable Python's garbage collector while a command's modules are imported; this saves a tenth of the start-up.

    The modules are then frozen, so that later collections skip them. If torch was loaded before, they are not frozen:
    there may be garbage among the objects of this process.
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


class Parser(argparse.ArgumentParser):
    """A parser that raises a `ConfigError`, which names the nearest flag."""

    def __init__(self, **kwargs: Any) -> None:
        """Disable abbreviated flags, so that a new flag cannot change the meaning of an old command."""
        super().__init__(**kwargs, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and leaving."""
        cure = f"see `{self.prog} --help`"
        if message.endswith("expected one argument"):
            flag = re.split("[:/]", message.split()[1])[0]
            cure = f"a value that begins with -- is joined to its flag: {flag}=--text"
        raise ConfigError(message, where=self.prog, cure=cure)

    def parse(self, words: list[str], *, intermixed: bool = False) -> argparse.Namespace:
        """Read the words; the error names every unknown flag and the nearest known one.

        Args:
            words: the command line after the command.
            intermixed: positional words may come between the flags.
        """
        words = self._spelled_out(words)
        namespace, unknown = self.parse_known_intermixed_args(words) if intermixed else self.parse_known_args(words)
        if unknown:
            known = [flag.lstrip("-") for flag in self._flags()] + [bare.replace("_", "-") for bare in self._bare()]
            words = [word.split("=")[0].lstrip("-") for word in unknown if word.startswith("-")]
            hints = " ".join(
                hint.replace("did you mean ", "did you mean --")
                for word in words
                if (hint := nearest(word, known, count=1))
            )
            raise ConfigError(
                f"unknown: {' '.join(unknown)}", where=self.prog, cure=hints or f"see `{self.prog} --help`"
            )
        return namespace

    def _flags(self) -> dict[str, argparse.Action]:
        return {flag: action for action in self._actions for flag in action.option_strings}

    def _bare(self) -> dict[str, str]:
        return bare_names(action.dest for action in self._actions if "." in action.dest)

    def _spelled_out(self, words: list[str]) -> list[str]:
        """Replace the bare names of settings by their flags, and join a value that begins with one - to its flag."""
        flags, bare, found = self._flags(), self._bare(), list[str]()
        for place, word in enumerate(words):
            if word == "--":
                return found + words[place:]
            name, equals, value = word.partition("=")
            if word.startswith("--") and name not in flags:
                dashes = "--no-" if name.startswith("--no-") else "--"
                key = bare.get(name.removeprefix(dashes).replace("-", "_"), "")
                full = dashes + key.replace("_", "-")
                word = full + equals + value if full in flags else word
            elif (
                word.startswith("-")
                and not word.startswith("--")
                and word[1:]
                and word not in flags
                and " " not in word
            ):
                before = flags.get(found[-1]) if found else None
                if before is None or before.nargs is not None:
                    cure = f"a file whose name begins with - is written ./{word}"
                    raise ConfigError(f"unknown: {word}", where=self.prog, cure=cure)
                found[-1] += f"={word}"
                continue
            found.append(word)
        return found


def make_parser(name: str, subject: str, command: Callable[[list[str]], int], epilog: str = "") -> Parser:
    """Return a parser with the flags of every command; `subject` follows the command's name in the usage line."""
    usage = f"gptloom {name} {subject} [flags]".replace("  ", " ")
    form = argparse.RawDescriptionHelpFormatter
    about = command.__doc__
    parser = Parser(prog=f"gptloom {name}", usage=usage, description=about, epilog=epilog, formatter_class=form)
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object on standard output")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def add_checkpoint_flags(parser: Parser) -> None:
    """Add --checkpoint and --device."""
    about = "checkpoint of a run folder: best, latest or step-N [best]"
    parser.add_argument("--checkpoint", metavar="NAME", default="best", help=about)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps [auto]")


def add_model_flags(parser: Parser) -> None:
    """Add --checkpoint, --device and --on-unknown."""
    add_checkpoint_flags(parser)
    about = "how to handle characters that the tokenizer does not know [error]"
    parser.add_argument("--on-unknown", choices=("error", "skip", "replace"), default="error", help=about)


def read_prompt(word: str) -> str:
    """Return the word itself; for `-`, the content of standard input.

    Bytes that are not UTF-8 become halves of surrogate pairs, as in the words of a command line. No tokenizer knows
    them, so `--on-unknown` decides how they are handled.

    Raises:
        InputError: standard input is closed, or longer than `LONGEST`.
    """
    if word != "-":
        return word
    if sys.stdin is None:
        raise InputError("is closed", where="standard input", cure="give the prompt with --prompt TEXT")
    content = sys.stdin.buffer.read(LONGEST + 1)
    if len(content) > LONGEST:
        what = f"is longer than the {LONGEST:,} bytes that a prompt may have"
        raise InputError(what, where="standard input", cure="give the end of it, for example with tail -c")
    return content.decode("utf-8", errors="surrogateescape").replace("\r\n", "\n").replace("\r", "\n")


def add_run_flags(
    parser: Parser,
    words: list[str],
    about: str,
    *,
    default: str = "tiny",
    below: Mapping[str, Any] | None = None,
    short: dict[str, str] | None = None,
    skip: Iterable[str] = (),
) -> None:
    """Add --recipe, and the settings of a run with the recipe's values in the help.

    Args:
        parser: the parser.
        words: the command line; only a request for help resolves the recipe.
        about: help of --recipe.
        default: recipe whose values the help shows where none is named.
        below: nested settings that the command sets itself.
        short: as `add_flags`.
        skip: dotted keys that have no flag.
    """
    parser.add_argument("--recipe", metavar="NAME", help=about)
    named = re.findall(r"--recipe[ =](\S+)", " ".join(words))
    name, values = named[-1] if named else default, dict[str, Any]()
    if {"-h", "--help"} & set(words):
        values = flatten(resolve(name, below or {}))
    add_flags(parser, RunConfig, short=short, skip={"recipe", *skip}, values=values)
    other = "" if named else "; `--recipe NAME --help` shows another's"
    about = f"[in brackets: the values of the recipe {name}{other}]\nrecipes: {', '.join(recipe_names())}"
    parser.epilog = (
        f"{about}\nA setting's own name will do: --lr 1e-3, --batch-size 32, --n-layer 6.\n\n{parser.epilog}"
    )


def add_flags(
    parser: argparse._ActionsContainer,
    config: type[Config],
    *,
    prefix: str = "",
    short: dict[str, str] | None = None,
    skip: Iterable[str] = (),
    values: Mapping[str, Any] | None = None,
) -> None:
    """Add a flag for every field of a group and of its nested groups.

    Args:
        parser: a parser, or a group of one.
        config: the group.
        prefix: key of the group itself.
        short: {dotted key: additional flag without the group's name}.
        skip: dotted keys that have no flag.
        values: {dotted key: value shown as the default}; by default the field's own.
    """
    for name, field in config.model_fields.items():
        key, kind = prefix + name, field.annotation
        if key in skip:
            continue
        if isinstance(kind, type) and issubclass(kind, Config):
            group = parser.add_argument_group(f"{key}: {field.description}")
            add_flags(group, kind, prefix=f"{key}.", short=short, skip=skip, values=values)
            continue
        flags = [
            f"--{key.replace('_', '-')}",
            *([f"--{short[key].replace('_', '-')}"] if short and key in short else []),
        ]
        default = field.get_default(call_default_factory=True) if values is None else values.get(key)
        text = f"{field.description}{_default(default)}".replace("%", "%%")
        if kind is bool:
            parser.add_argument(
                *flags, dest=key, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text
            )
        elif get_origin(kind) is tuple:
            parser.add_argument(*flags, dest=key, action="append", default=argparse.SUPPRESS, metavar="TEXT", help=text)
        else:
            parser.add_argument(*flags, dest=key, default=argparse.SUPPRESS, metavar=metavar(kind), help=text)


def given(namespace: argparse.Namespace, config: type[Config], skip: Iterable[str] = ()) -> dict[str, Any]:
    """Return the settings given as flags, by dotted key; the word `none` unsets an optional setting."""
    found = {}
    for key, field in field_names(config).items():
        if key not in skip and hasattr(namespace, key):
            value = getattr(namespace, key)
            found[key] = None if value == "none" and type(None) in get_args(field.annotation) else value
    return found


def metavar(kind: Any) -> str:
    """Return the placeholder of a value in the help: the choices, or the type."""
    if get_origin(kind) in (Union, types.UnionType):
        return metavar(next(part for part in get_args(kind) if part is not type(None)))
    if get_origin(kind) is Literal:
        return "{" + ",".join(map(str, get_args(kind))) + "}"
    if hasattr(kind, "__metadata__"):
        return metavar(get_args(kind)[0])
    return {int: "INT", float: "NUMBER", str: "TEXT"}.get(kind, "VALUE")


def _default(value: Any) -> str:
    """Format the default in brackets; a line end is escaped, so that it is visible."""
    return "" if value in (None, ()) else f" [{repr(value)[1:-1] if isinstance(value, str) else value}]"
