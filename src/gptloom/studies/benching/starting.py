"""How long the command line takes to answer, beside what Python and PyTorch need by themselves."""

import subprocess
import sys
from typing import Any

from gptloom.studies.benching.timing import Budget, Say, Spread

LAUNCHES = {
    "python": ["-c", "pass"],
    "import torch": ["-c", "import torch"],
    "gptloom --help": ["-m", "gptloom", "--help"],
    "gptloom train --help": ["-m", "gptloom", "train", "--help"],
}
_MOST = 9


def time_starts(budget: Budget, say: Say) -> list[dict[str, Any]]:
    """Launch each in turn, at least once and at most nine times; for JSON, with the bare interpreter's median as the limit."""
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
        {"name": name, "seconds": one.median, "quartiles": [one.low, one.high], "repeats": one.repeats, "limit": limit, "share_of_limit": limit / one.median}
        for name, one in spreads.items()
    ]
