"""Pairs out of texts: a line holds a source and its target with a tab between, and each side is a document of its own."""

import io
from collections.abc import Iterator
from dataclasses import dataclass

from gptloom.data.documents import Piece, Source
from gptloom.data.reading import LINE_ENDS, open_binary
from gptloom.errors import InputError

_SHAPE = "write each line as SOURCE<tab>TARGET"


@dataclass
class PairSource(Source):
    """A file of pairs: document 2i is the source of pair i, document 2i + 1 its target."""

    def pieces(self, text_field: str) -> Iterator[Piece]:
        """Both sides of each line, in order, in pieces; blank lines are left out.

        Args:
            text_field: not used; a file of pairs has no header.

        Raises:
            InputError: the file is not in its encoding, or a line is not a pair.
        """
        try:
            for source, target in self._pairs():
                yield from self._cut(source)
                yield from self._cut(target)
        except UnicodeError as error:
            raise InputError(f"is not {self.encoding} text: {error}", where=self.label, cure="name its encoding (--data.encoding)") from None

    def _pairs(self) -> Iterator[tuple[str, str]]:
        found = False
        with io.TextIOWrapper(open_binary(self.path), encoding=self.encoding) as lines:
            for number, line in enumerate(lines, 1):
                if line.strip(" \n"):
                    yield _sides(line.removesuffix("\n"), f"{self.label}:{number}")
                    found = True
            if lines.newlines not in (None, "\n"):
                self.remarks.add(LINE_ENDS)
        if not found:
            raise InputError("has no pair, only blank lines", where=self.label, cure=_SHAPE)


def _sides(line: str, where: str) -> tuple[str, str]:
    """The two sides of a line."""
    sides = line.split("\t")
    if len(sides) == 1:
        raise InputError("has no tab, so it is no pair", where=where, cure=_SHAPE)
    if len(sides) > 2:
        raise InputError(f"has {len(sides) - 1} tabs, and a pair has one", where=where, cure=_SHAPE)
    for name, side in zip(("source", "target"), sides, strict=True):
        if not side.strip():
            raise InputError(f"has an empty {name}", where=where, cure="fill it in, or delete the line")
    return sides[0], sides[1]
