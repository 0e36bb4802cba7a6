"""Errors that a user can act on: the problem, its place, and what to do. Each class has an exit code."""

import difflib
import re
from collections.abc import Iterable
from enum import IntEnum
from itertools import islice


class ExitCode(IntEnum):
    """Exit codes of the command line.

    FAILED: `verify` found a problem. 130 and 143 are the shell's convention for SIGINT and SIGTERM.
    """

    DONE = 0
    FAILED = 1
    INPUT = 2
    MACHINE = 3
    DIVERGED = 4
    INTERRUPTED = 130
    TERMINATED = 143


LONGEST = 2000
"""Maximum number of characters shown of each part of an error."""

LONGEST_PLACE = 300
"""Maximum number of characters shown of its place, so that a text given in place of a path is not repeated."""

_FLAG = re.compile(r"`[^`]*`|(?<![\w-])--([a-z]\w*(?:[.-]\w+)*)(?: (?=\d))?")


class GptloomError(Exception):
    """Base class of all errors that users see.

    Args:
        what: the problem, in one sentence without a full stop.
        where: the file, line, key or flag.
        cure: what the user can do.
    """

    code = ExitCode.INPUT

    def __init__(self, what: str, *, where: str = "", cure: str = "") -> None:
        """Store the three parts; each interface formats them in its own way."""
        self.what, self.where, self.cure = what, where, cure
        super().__init__(as_keywords(self.line()))

    def line(self) -> str:
        """Format the error as one printable line, whatever was received; `str` names keywords in place of flags."""
        parts = (self.where, LONGEST_PLACE), (self.what, LONGEST), (self.cure, LONGEST)
        where, what, cure = (visible(shortened(part, most)) for part, most in parts)
        return (f"{where}: " if where else "") + what + (f"; {cure}" if cure else "")


class InputError(GptloomError):
    """The text, the file or the request cannot be used."""


class DeniedError(InputError):
    """This user may not read a file. No other file can replace it, so it is never treated as damaged."""


class ConfigError(GptloomError):
    """A setting is unknown, has the wrong type, is out of range or conflicts with another."""


class MachineError(GptloomError):
    """A resource is missing: disk, memory, device or network."""

    code = ExitCode.MACHINE


class DivergedError(GptloomError):
    """The loss or a gradient is not finite."""

    code = ExitCode.DIVERGED


class GptloomWarning(UserWarning):
    """A warning in one line, for the user. The work continues."""

    def __str__(self) -> str:
        """Name keywords in place of flags, as errors do; the command line prints the argument itself."""
        return as_keywords(str(self.args[0]))


def as_keywords(text: str) -> str:
    """Name settings as Python does: train.steps in place of --train.steps. Commands in backquotes stay as they are."""
    return _FLAG.sub(lambda found: found[0] if found[1] is None else _keyword(found), text)


def _keyword(found: re.Match[str]) -> str:
    return found[1].replace("-", "_") + ("=" if found[0].endswith(" ") else "")


PERMISSIONS = "change its permissions (chmod, chown), or work as its owner"


def cure_for(error: BaseException, cure: str) -> str:
    """Return the cure of a failed read or write: `cure`, unless this user lacks the permission."""
    return PERMISSIONS if isinstance(error, PermissionError) else cure


def visible(text: str) -> str:
    """Collapse white space, and escape characters that cannot be printed."""
    words = " ".join(text.split())
    return words if words.isprintable() else "".join(char if char.isprintable() else repr(char)[1:-1] for char in words)


def shortened(text: str, most: int) -> str:
    """Return the text, or its beginning and end if it is longer than `most` characters."""
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 4 :]}"


def nearest(word: str, known: Iterable[str], *, count: int = 2) -> str:
    """Return a clause that suggests the most similar known words, or an empty string."""
    close = difflib.get_close_matches(word[:100], list(islice(known, 10_000)), n=count, cutoff=0.6)
    return "did you mean " + " or ".join(close) + "?" if close else ""
