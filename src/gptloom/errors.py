"""Errors that a user can act on: what happened, where, and what to do about it; each kind has its exit code."""

import difflib
from collections.abc import Iterable
from enum import IntEnum
from itertools import islice


class ExitCode(IntEnum):
    """Exit codes of the command line (FAILED: `verify` found something wrong; 130 and 143 are the shell's own convention for SIGINT and SIGTERM)."""

    DONE = 0
    FAILED = 1
    INPUT = 2
    MACHINE = 3
    DIVERGED = 4
    INTERRUPTED = 130
    TERMINATED = 143


LONGEST = 2000
"""Characters of one part of an error that are shown."""


class GptloomError(Exception):
    """A failure with a cause and a cure.

    Args:
        what: what was received and why it cannot be used, in one sentence without a full stop.
        where: the file, line, key or flag that it came from.
        cure: what to do about it.
    """

    code = ExitCode.INPUT

    def __init__(self, what: str, *, where: str = "", cure: str = "") -> None:
        """Keep the three parts, so that each surface can lay them out in its own way."""
        self.what, self.where, self.cure = what, where, cure
        super().__init__(self.line())

    def line(self) -> str:
        """The whole error on one line that any terminal can show, however long or odd what was received."""
        where, what, cure = (visible(shortened(part, LONGEST)) for part in (self.where, self.what, self.cure))
        return (f"{where}: " if where else "") + what + (f"; {cure}" if cure else "")


class InputError(GptloomError):
    """The text, the file or the request cannot be used as it is."""


class ConfigError(GptloomError):
    """A setting is unknown, of the wrong type, out of range, or at odds with another."""


class MachineError(GptloomError):
    """The disk, the memory, the device or the network did not give what was needed."""

    code = ExitCode.MACHINE


class DivergedError(GptloomError):
    """The loss or a gradient stopped being finite."""

    code = ExitCode.DIVERGED


class GptloomWarning(UserWarning):
    """Something is not as it should be, and the work goes on; one line, as the user is to read it."""


def visible(text: str) -> str:
    """Runs of white space as one space, and what cannot be seen (control characters, halves of surrogate pairs) spelled out."""
    words = " ".join(text.split())
    return words if words.isprintable() else "".join(char if char.isprintable() else repr(char)[1:-1] for char in words)


def shortened(text: str, most: int) -> str:
    """The text, or its beginning and end where it has more than so many characters."""
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 4 :]}"


def nearest(word: str, known: Iterable[str], *, count: int = 2) -> str:
    """A clause that names the known words most like `word`, or an empty string when none is close."""
    close = difflib.get_close_matches(word[:100], list(islice(known, 10_000)), n=count, cutoff=0.6)
    return "did you mean " + " or ".join(close) + "?" if close else ""
