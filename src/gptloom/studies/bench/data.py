"""Benchmarks of data preparation and of start-up.

Texts of growing size are prepared for training, each in a separate process, so that its peak memory can be measured.
The start-up time of the command line is compared with that of Python and of `import torch`.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gptloom.config.run import DataConfig
from gptloom.devices import derive
from gptloom.errors import MachineError
from gptloom.studies.bench.limits import Budget, Say, Spread

MEGABYTE = 1_000_000
SIZES = tuple(size * MEGABYTE for size in (1, 4, 16))
LARGEST = tuple(size * MEGABYTE for size in (64, 256, 1000))

_WORDS = 20_000
_AT_ONCE = 200_000
_SPELLED = "etaoinshrdlucmfwypvbgkjqxz"


def write_text(path: Path, size: int, seed: int) -> None:
    """Write a synthetic text of `size` bytes: lines of short words whose frequencies follow Zipf's law."""
    draws = np.random.default_rng(derive(seed, "bench", "text"))
    chances = 1.0 / np.arange(1, len(_SPELLED) + 1)
    lengths = draws.integers(1, 12, _WORDS)
    letters = draws.choice(list(_SPELLED), lengths.sum(), p=chances / chances.sum())
    words = np.array(["".join(word) for word in np.split(letters, np.cumsum(lengths)[:-1])], dtype=object)
    often = np.cumsum(1.0 / np.arange(1, _WORDS + 1))
    left = size
    with path.open("wb") as file:
        while left:
            drawn = words[np.searchsorted(often, draws.random(_AT_ONCE) * often[-1])]
            lines = (" ".join(drawn[start : start + 10]) for start in range(0, _AT_ONCE, 10))
            left -= file.write((",\n".join(lines) + ".\n").encode()[:left])


def time_preparing(config: DataConfig, seed: int, budget: Budget, largest: bool, say: Say) -> Iterator[dict[str, Any]]:
    """Prepare texts of 1, 4 and 16 MB (with `largest`, up to 1 GB) with the configuration's tokenizer.

    Yields:
        Per text, for JSON: the measurements, or its size and the reason why it was skipped.

    Raises:
        MachineError: the process that prepares a text has failed.
    """
    fixed = per_byte = 0.0
    for size in (*SIZES, *(LARGEST if largest else ())):
        if (expected := fixed + size * per_byte) > budget.left and not largest:
            yield {"value": size, "why": f"it would take about {expected:.0f} s; --minutes gives more time"}
            continue
        start = budget.clock()
        found = _measure(config, size, seed)
        elapsed = budget.clock() - start
        if "error" in found:
            yield {"value": size, "why": found["error"]}
            return
        seconds = found["scan"] + found["learn"] + found["encode"]
        fixed, per_byte = max(0.0, elapsed - seconds), seconds / size
        found |= {
            "value": size,
            "seconds": seconds,
            "bytes_per_second": size / seconds,
            "limit_bytes_per_second": size / found["limit"],
        }
        found |= {"encode_bytes_per_second": size / found["encode"], "share_of_limit": found["limit"] / seconds}
        memory = f", {found['peak_memory'] / MEGABYTE:,.0f} MB of memory" if found["peak_memory"] else ""
        say(f"preparing {size // MEGABYTE:,} MB: {size / seconds / MEGABYTE:,.1f} MB/s{memory}")
        yield found


def _measure(config: DataConfig, size: int, seed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="gptloom-bench-") as folder:
        text = Path(folder, "text.txt")
        write_text(text, size, seed)
        settings = config.model_copy(update={"cache": str(Path(folder, "cache")), "val_text": None}).model_dump_json()
        words = [sys.executable, "-m", "gptloom.studies.bench.data_worker", str(text), settings]
        done = subprocess.run(words, capture_output=True, text=True, encoding="utf-8", check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise MachineError(
            f"the process that prepares texts ended with {done.returncode}: {last}",
            where="bench",
            cure="leave it out with --only step,sampling",
        )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


LAUNCHES = {
    "python": ["-c", "pass"],
    "import torch": ["-c", "import torch"],
    "gptloom --help": ["-m", "gptloom", "--help"],
    "gptloom train --help": ["-m", "gptloom", "train", "--help"],
}
_MOST = 9


def time_starts(budget: Budget, say: Say) -> list[dict[str, Any]]:
    """Run each command of `LAUNCHES` one to nine times; return the times for JSON, with plain Python's as the limit."""
    found: dict[str, list[float]] = {name: [] for name in LAUNCHES}
    spent = 0.0
    for _ in range(_MOST):
        start = budget.clock()
        for name, words in LAUNCHES.items():
            before = budget.clock()
            subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
            found[name].append(budget.clock() - before)
        spent = budget.clock() - start
        if budget.left < spent:
            break
    spreads = {name: Spread.of(seconds) for name, seconds in found.items()}
    limit = spreads["python"].median
    for name, one in spreads.items():
        say(f"start: {name} {one.median:.3f} s")
    return [
        {
            "name": name,
            "seconds": one.median,
            "quartiles": [one.low, one.high],
            "repeats": one.repeats,
            "limit": limit,
            "share_of_limit": limit / one.median,
        }
        for name, one in spreads.items()
    ]
