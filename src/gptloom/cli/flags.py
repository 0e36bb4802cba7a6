"""Command-line flags from the typed fields of a configuration.

argparse reads the words; the fields alone judge the values.
"""

import argparse
import types
from collections.abc import Iterable
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

from gptloom.config.base import Config, field_names
from gptloom.errors import ConfigError, nearest


class Parser(argparse.ArgumentParser):
    """A parser that fails as everything here does: with a `ConfigError`, which names the nearest flag."""

    def __init__(self, **kwargs: Any) -> None:
        """Flags are never abbreviated: a new flag must not change what an old command means."""
        super().__init__(**kwargs, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and leaving."""
        raise ConfigError(message, where=self.prog, cure=f"see `{self.prog} --help`")

    def parse(self, words: list[str], *, intermixed: bool = False) -> argparse.Namespace:
        """Read the words; every flag that does not exist is named, with the nearest one that does.

        Args:
            words: the command line after the command.
            intermixed: words that are no flags may stand anywhere among the flags.
        """
        namespace, unknown = self.parse_known_intermixed_args(words) if intermixed else self.parse_known_args(words)
        if unknown:
            flags = [flag.lstrip("-") for action in self._actions for flag in action.option_strings]
            words = [word.split("=")[0].lstrip("-") for word in unknown if word.startswith("-")]
            hints = " ".join(
                hint.replace("did you mean ", "did you mean --")
                for word in words
                if (hint := nearest(word, flags, count=1))
            )
            raise ConfigError(
                f"unknown: {' '.join(unknown)}", where=self.prog, cure=hints or f"see `{self.prog} --help`"
            )
        return namespace


def add_flags(
    parser: argparse._ActionsContainer,
    config: type[Config],
    *,
    prefix: str = "",
    short: dict[str, str] | None = None,
    skip: Iterable[str] = (),
) -> None:
    """A flag for every field of a group and of the groups inside it.

    Args:
        parser: a parser, or a group of one.
        config: the group.
        prefix: key of the group itself.
        short: {dotted key: a second flag without the group's name}.
        skip: dotted keys that have no flag.
    """
    for name, field in config.model_fields.items():
        key, kind = prefix + name, field.annotation
        if key in skip:
            continue
        if isinstance(kind, type) and issubclass(kind, Config):
            add_flags(
                parser.add_argument_group(f"{key}: {field.description}"), kind, prefix=f"{key}.", short=short, skip=skip
            )
            continue
        flags = [
            f"--{key.replace('_', '-')}",
            *([f"--{short[key].replace('_', '-')}"] if short and key in short else []),
        ]
        text = f"{field.description}{_default(field.get_default(call_default_factory=True))}".replace("%", "%%")
        if kind is bool:
            parser.add_argument(
                *flags, dest=key, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text
            )
        elif get_origin(kind) is tuple:
            parser.add_argument(*flags, dest=key, action="append", default=argparse.SUPPRESS, metavar="TEXT", help=text)
        else:
            parser.add_argument(*flags, dest=key, default=argparse.SUPPRESS, metavar=metavar(kind), help=text)


def given(namespace: argparse.Namespace, config: type[Config], skip: Iterable[str] = ()) -> dict[str, Any]:
    """The settings that were given as flags, by dotted key; the word `none` unsets a setting that may be unset."""
    found = {}
    for key, field in field_names(config).items():
        if key not in skip and hasattr(namespace, key):
            value = getattr(namespace, key)
            found[key] = None if value == "none" and type(None) in get_args(field.annotation) else value
    return found


def metavar(kind: Any) -> str:
    """How a value is shown in the help: the choices, or the type."""
    if get_origin(kind) in (Union, types.UnionType):
        return metavar(next(part for part in get_args(kind) if part is not type(None)))
    if get_origin(kind) is Literal:
        return "{" + ",".join(map(str, get_args(kind))) + "}"
    if hasattr(kind, "__metadata__"):
        return metavar(get_args(kind)[0])
    return {int: "INT", float: "NUMBER", str: "TEXT"}.get(kind, "VALUE")


def _default(value: Any) -> str:
    """The default in brackets; a line end is spelled, so that it can be seen."""
    return "" if value in (None, ()) else f" [{repr(value)[1:-1] if isinstance(value, str) else value}]"
