"""Parse and format large numbers such as 300B, 1.5M or 1e21."""

import math
import re

from gptloom.errors import ConfigError, shortened

_SIZES = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}
_SHOWN = (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3))


def read_amount(text: str, where: str, *, least: float = 0.0) -> float:
    """Parse a number with an optional letter: k (1e3), M (1e6), B or G (1e9), T (1e12).

    Args:
        text: the number.
        where: the flag, for error messages.
        least: the number must be larger than this.

    Raises:
        ConfigError: the text is not such a number, or the number is not above `least`.
    """
    found = re.fullmatch(r"([0-9][0-9_,]*\.?[0-9]*(?:e[+-]?[0-9]{1,3})?|\.[0-9]+)\s*([kmbgt]?)", text.strip().lower())
    value = float(found[1].replace("_", "").replace(",", "")) * _SIZES[found[2]] if found else math.nan
    if not (math.isfinite(value) and value > least):
        more = f" above {least:g}" if least else " above 0"
        raise ConfigError(
            f"{shortened(text, 40)!r} is not an amount{more}", where=where, cure="write it as 300B, 1.5M or 1e21"
        )
    return value


def show_amount(value: float | int) -> str:
    """Format a number with three digits and a letter, or as a power of ten from 1e15 on."""
    if value >= 1e15:
        return f"{value:.3g}"
    for letter, size in _SHOWN:
        if value >= 0.9995 * size:
            digits = f"{value / size:.3g}"
            return f"{digits}{letter}"
    return f"{value:.3g}"


def show_bytes(count: float | int) -> str:
    """Format bytes as kB, MB, GB or TB (powers of ten)."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 1e3:,.1f} kB"
