"""Measure the start-up time of the command line, from the launch of the process.

    python benchmarks/start_up.py [ROUNDS]

It times `python`, `import torch` (the lower limit of every command that computes), `--help`, and the help of each
command; `gptloom train shakespeare` until the line of its first step, with and without the text's token file in the
cache; and `gptloom sample` until its first character. All are measured in turn. Prints the median and quartiles in
seconds.
"""

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from gptloom.cli.main import COMMANDS
from gptloom.config.run import DataConfig
from gptloom.data.sources import fetch
from gptloom.data.tokens import cache_folder

GPTLOOM = [sys.executable, "-m", "gptloom"]


def whole(*words: str) -> float:
    """Seconds until the process has ended."""
    start = time.perf_counter()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def until_line(beginning: bytes, words: list[str]) -> float:
    """Seconds until a line on standard error begins with this text; the process is then terminated."""
    start = time.perf_counter()
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        for line in process.stderr:
            if line.startswith(beginning):
                took = time.perf_counter() - start
                process.kill()
                return took
    raise SystemExit(f"{' '.join(words)} ended before it said {beginning.decode()!r}")


def until_character(words: list[str]) -> float:
    """Seconds until the first character on standard output; the process is then terminated."""
    start = time.perf_counter()
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        if not process.stdout.read(1):
            raise SystemExit(f"{' '.join(words)} ended without a character")
        took = time.perf_counter() - start
        process.kill()
        return took


def first_step(cache: Path, cached: bool) -> float:
    if not cached:
        shutil.rmtree(cache / "tokens", ignore_errors=True)
    with tempfile.TemporaryDirectory() as run:
        return until_line(
            b"step 1 of", [*GPTLOOM, "train", "shakespeare", "--run", f"{run}/run", "--data.cache", str(cache)]
        )


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    with tempfile.TemporaryDirectory() as folder:
        cache, run = Path(folder, "cache"), str(Path(folder, "run"))
        (cache / "datasets").mkdir(parents=True)
        shutil.copy(fetch("shakespeare", cache_folder(DataConfig()))[0], cache / "datasets")
        subprocess.run(
            [*GPTLOOM, "train", "shakespeare", "--steps", "1", "--run", run, "--data.cache", str(cache)],
            check=True,
            capture_output=True,
        )
        measures: dict[str, Callable[[], float]] = {
            "python": lambda: whole(sys.executable, "-c", "pass"),
            "import torch": lambda: whole(sys.executable, "-c", "import os, torch; os._exit(0)"),
            "train, tokens cached, to the first step": lambda: first_step(cache, True),
            "train, tokens not cached, to the first step": lambda: first_step(cache, False),
            "sample, to the first character": lambda: until_character([*GPTLOOM, "sample", run]),
            "--help": lambda: whole(*GPTLOOM, "--help"),
            **{f"{name} --help": lambda name=name: whole(*GPTLOOM, name, "--help") for name in COMMANDS},
        }
        found = {name: [] for name in measures}
        for _ in range(rounds):
            for name, measure in measures.items():
                found[name].append(measure())
    print(json.dumps({name: summary(seconds) for name, seconds in found.items()}, indent=2))


def summary(seconds: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else seconds * 3
    return {"median": round(middle, 3), "quartiles": [round(low, 3), round(high, 3)]}


if __name__ == "__main__":
    main()
