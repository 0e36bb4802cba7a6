"""How long the command line takes to answer: `gptloom --help` and the help of each command, as whole processes."""

import json
import statistics
import subprocess
import sys
import time

from gptloom.cli import COMMANDS


def seconds(words: list[str]) -> float:
    """Median duration of seven runs."""
    durations = []
    for _ in range(7):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "gptloom", *words], check=True, stdout=subprocess.DEVNULL)
        durations.append(time.perf_counter() - start)
    return round(statistics.median(durations), 3)


def main() -> None:
    print(json.dumps({" ".join(words): seconds(words) for words in [["--help"], *([name, "--help"] for name in COMMANDS)]}, indent=2))


if __name__ == "__main__":
    main()
