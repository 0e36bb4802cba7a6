"""Number words: the same numbers in two languages, as num2words spells them, with two ranges that never train."""

import hashlib
import importlib.metadata
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gptloom.data.tokens import replacing
from gptloom.errors import InputError, nearest

PREFIX = "numbers:"
EXAMPLE = "numbers:en-fr"

HELD_OUT = (range(42_000, 43_000), range(97_000, 98_000))
"""Numbers that no training pair is of.

Their thousands, forty-two and ninety-seven, occur in training only as the end of a number.
"""

VAL_FRACTION = 0.1
"""The share that the held-out numbers have of all pairs.

It is `DataConfig`'s default, so that they are what validation reads.
"""

_ALL_BELOW = 1_000
_DRAWN = {4: 8_500, 5: 8_500}
_VERSION = 1
# What num2words raises where a language stops short; it has no class of its own for that.
_FAILURES = (ArithmeticError, AttributeError, LookupError, NotImplementedError, TypeError, ValueError)


def is_numbers(text: str) -> bool:
    """Whether a word of the command line asks for number words."""
    return text.startswith(PREFIX)


def training_numbers() -> list[int]:
    """The numbers of the training pairs, ascending, always the same.

    All numbers below 1,000 are there once, because they are the parts of the larger ones, and 8,500 each of four and of
    five digits: a draw over all of them alike would leave nine in ten with five digits, the longest and slowest to
    learn from.
    """
    held_out = {number for block in HELD_OUT for number in block}
    numbers = list(range(_ALL_BELOW))
    for digits, count in _DRAWN.items():
        candidates = np.array([number for number in range(10 ** (digits - 1), 10**digits) if number not in held_out])
        # The raw stream of Philox is the same with every version of NumPy.
        draws = np.random.Philox(key=digits).random_raw(len(candidates))
        numbers += sorted(candidates[np.argsort(draws, kind="stable")[:count]].tolist())
    return numbers


def held_out_numbers() -> list[int]:
    """The numbers of the validation pairs, which stand behind all others."""
    return [number for block in HELD_OUT for number in block]


def languages() -> list[str]:
    """The languages that num2words names; some of them end before 99,999.

    Raises:
        InputError: num2words is not installed.
    """
    return sorted(_library().CONVERTER_CLASSES)


def number_pairs(text: str, cache: Path) -> tuple[Path, list[str]]:
    """The file of pairs that a word such as numbers:en-fr stands for, and notes for the user.

    It holds a line for each number, its words in both languages with a tab between, the held-out numbers last. Beside
    it lies a JSON file with its hash and the version of num2words that made it. A file that is whole is used as it is.

    Args:
        text: numbers:SOURCE-TARGET, with num2words' names of the languages.
        cache: the cache folder, where the file is kept as datasets/numbers-SOURCE-TARGET.tsv.

    Raises:
        InputError: the word is of another form, num2words is missing or does not know a language, or a language has no
            words for some of the numbers, or the same words for two of them.
        MachineError: the cache cannot be written.
    """
    source, target = _parsed(text)
    path = cache / "datasets" / f"numbers-{source}-{target}.tsv"
    record = path.with_suffix(".json")
    notes: list[str] = []
    if path.is_file():
        if _is_whole(path.read_bytes(), record):
            return path, notes
        notes.append(f"{path} was damaged or out of date and has been made again")
    numbers = [*training_numbers(), *held_out_numbers()]
    data = "".join(
        f"{left}\t{right}\n" for left, right in zip(_sources(source, numbers), _spelled(target, numbers), strict=True)
    ).encode()
    facts = {
        "version": _VERSION,
        "num2words": importlib.metadata.version("num2words"),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    with replacing(path) as file:
        file.write(data)
    with replacing(record) as file:
        file.write((json.dumps(facts, indent=1) + "\n").encode())
    return path, notes


def _parsed(text: str) -> tuple[str, str]:
    """The two languages, both of them known to num2words."""
    pair = text.removeprefix(PREFIX).split("-")
    if len(pair) != 2 or not all(pair):
        raise InputError(
            f"is not of the form {PREFIX}SOURCE-TARGET", where=text, cure=f"name two languages, as in {EXAMPLE}"
        )
    known = languages()
    for language in pair:
        if language not in known:
            cure = nearest(language, known) or f"choose from {', '.join(known)}"
            raise InputError(f"num2words has no language {language!r}", where=text, cure=cure)
    return pair[0], pair[1]


def _sources(language: str, numbers: Sequence[int]) -> Iterator[str]:
    """As `_spelled`, and no two numbers are spelled alike: else nobody could tell which is meant."""
    found: dict[str, int] = {}
    for number, words in zip(numbers, _spelled(language, numbers), strict=True):
        other = found.setdefault(words, number)
        if other != number:
            what = f"num2words spells {other:,} and {number:,} alike in {language!r}: {words!r}"
            raise InputError(what, where=PREFIX + language, cure="translate from another language")
        yield words


def _spelled(language: str, numbers: Sequence[int]) -> Iterator[str]:
    convert = _library().num2words
    for number in numbers:
        try:
            words = " ".join(convert(number, lang=language).split())
        except _FAILURES:
            words = ""
        if not words:
            raise InputError(
                f"num2words has no words for {number:,} in {language!r}",
                where=PREFIX + language,
                cure="choose another language",
            )
        yield words


def _is_whole(data: bytes, record: Path) -> bool:
    try:
        facts = json.loads(record.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(facts, dict) and (facts.get("version"), facts.get("sha256")) == (
        _VERSION,
        hashlib.sha256(data).hexdigest(),
    )


def _library() -> Any:
    try:
        import num2words
    except ImportError:
        raise InputError(
            "needs the package num2words", where=EXAMPLE, cure='pip install "gptloom[translate]"'
        ) from None
    return num2words
