"""JSON records that a study keeps as it goes: written whole or not at all, so that it can go on where it stopped."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptloom.data.cache import replacing
from gptloom.errors import InputError


def read_record(path: Path) -> dict[str, Any]:
    """The record in a file.

    Raises:
        InputError: it cannot be read, or is not a JSON object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise InputError("cannot be read as JSON", where=str(path), cure="delete it, and it is made again; or choose another --run") from None
    if not isinstance(values, dict):
        raise InputError("holds no JSON object", where=str(path), cure="delete it, and it is made again; or choose another --run")
    return values


def write_record(path: Path, values: Mapping[str, Any]) -> None:
    """Write a record, and the folders that it lies in.

    Raises:
        MachineError: the disk does not take it.
    """
    with replacing(path) as file:
        file.write((json.dumps(values, ensure_ascii=False, indent=1) + "\n").encode())
