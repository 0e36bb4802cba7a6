"""Number words: pairs of the same number spelled in two languages by num2words; two ranges are for validation only."""

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
"""Numbers without a training pair. In training, 42 and 97 occur only at the end of a number, not as thousands."""

VAL_FRACTION = 0.1
"""Share of the held-out numbers in all pairs: `DataConfig`'s default, so that they form the validation part."""

_ALL_BELOW = 1_000
_DRAWN = {4: 8_500, 5: 8_500}
_VERSION = 1
# num2words raises any of these for numbers that a language does not support.
_FAILURES = (ArithmeticError, AttributeError, LookupError, NotImplementedError, TypeError, ValueError)


def is_numbers(text: str) -> bool:
    """Whether a text on the command line means number words."""
    return text.startswith(PREFIX)


def training_numbers() -> list[int]:
    """Return the numbers of the training pairs, ascending; always the same.

    They are all numbers below 1,000, which are parts of the larger ones, and 8,500 numbers each of four and of five
    digits. In a uniform sample, nine in ten numbers would have five digits; their words are the longest and the slowest
    to learn from.
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
    """Return the numbers of the validation pairs, which follow the training pairs in the file."""
    return [number for block in HELD_OUT for number in block]


def languages() -> list[str]:
    """Return the languages of num2words; some do not reach 99,999.

    Raises:
        InputError: num2words is not installed.
    """
    return sorted(_library().CONVERTER_CLASSES)


def number_pairs(text: str, cache: Path) -> tuple[Path, list[str]]:
    """Return the file of pairs of a text such as numbers:en-fr, creating it if needed, and notes for the user.

    Each line is one number as SOURCE<tab>TARGET; the held-out numbers are last. A JSON file with the same name records
    the hash and the version of num2words. An existing undamaged file is used.

    Args:
        text: numbers:SOURCE-TARGET, with num2words' names of the languages.
        cache: the cache folder; the file is stored there as datasets/numbers-SOURCE-TARGET.tsv.

    Raises:
        InputError: the text has another form, num2words is missing or does not know a language, or a language has no
            words for a number, or the same words for two numbers.
        MachineError: the cache cannot be written.
    """
    source, target = _parsed(text)
    path = cache / "datasets" / f"numbers-{source}-{target}.tsv"
    record = path.with_suffix(".json")
    notes: list[str] = []
    if path.is_file():
        if _is_whole(path.read_bytes(), record):
            return path, notes
        notes.append(f"{path} was damaged or out of date and was created again")
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
    """Parse the two languages; both are known to num2words."""
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
    """Yield the words of `_spelled`; raises InputError if two numbers have the same words (ambiguous as a source)."""
    found: dict[str, int] = {}
    for number, words in zip(numbers, _spelled(language, numbers), strict=True):
        other = found.setdefault(words, number)
        if other != number:
            what = f"num2words spells {other:,} and {number:,} identically in {language!r}: {words!r}"
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
