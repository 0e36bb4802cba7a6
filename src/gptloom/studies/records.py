"""JSON records that a study keeps as it goes: written whole or not at all, so that it can go on where it stopped."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from gptloom.data.cache import replacing
from gptloom.errors import InputError
from gptloom.files import read_json

Record = TypeVar("Record")

LONGEST = 1 << 26
"""Bytes of a record. The longest, a ladder's plan, names all of its texts."""

_CURE = "delete it, and it is made again; or choose another --run"


def read_record(path: Path) -> dict[str, Any]:
    """The record in a file.

    Raises:
        InputError: it cannot be read, or is not a JSON object.
    """
    return read_json(path, limit=LONGEST, cure=_CURE)


def read_as(path: Path, kind: type[Record], *, cure: str = _CURE) -> Record:
    """The record in a file as a dataclass, its fields checked.

    Raises:
        InputError: it cannot be read, or a field is missing or of another type.
    """
    try:
        return TypeAdapter(kind).validate_python(read_record(path))
    except ValidationError as error:
        key = ".".join(map(str, error.errors()[0]["loc"]))
        raise InputError(f"is no whole record of a {kind.__name__.lower()}: {key} is missing or of the wrong type", where=str(path), cure=cure) from None


def write_record(path: Path, values: Mapping[str, Any]) -> None:
    """Write a record, and the folders that it lies in.

    Raises:
        MachineError: the disk does not take it.
    """
    with replacing(path) as file:
        file.write((json.dumps(values, ensure_ascii=False, indent=1) + "\n").encode())
