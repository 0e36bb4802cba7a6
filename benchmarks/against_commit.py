"""Benchmark this checkout against another commit: training step, sampling and start-up, through the public interface.

    python benchmarks/against_commit.py --base ff6eb0a [--rounds 9] [--out FILE]

Each round runs one process per side, in alternating order, on the same text, seed and threads. Within a process the
fastest of several repetitions counts, because other programs of the machine only add time. A ratio is the time of this
checkout over that of the base, in one round; the table gives the median, minimum and maximum of the rounds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from io import BytesIO
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TEXT = "The quick brown fox jumps over the lazy dog, and it does so every day but Sunday.\n" * 2000

WORK = """
import json, sys, time
import gptloom
text, folder = sys.argv[1:3]
found = {}
shapes = {
    "tiny": ({}, 8, 150, 10, 200),
    "lecture": ({"n_layer": 4, "n_head": 4, "n_embd": 64, "block_size": 32, "ngrams": 1}, 16, 300, 20, 200),
    "10.7M": ({"n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 64, "ngrams": 1}, 4, 9, 1, 60),
}
for name, (model, rows, steps, every, tokens) in shapes.items():
    train = {"batch_size": rows, "sample_tokens": 0, "eval_every": 10 ** 6, "save_every": 10 ** 6, "log_every": every}
    result = gptloom.train(text, recipe="tiny", run=f"{folder}/{name}", steps=steps, model=model, train=train,
                           device="cpu")
    lines = [json.loads(line) for line in open(f"{folder}/{name}/metrics.jsonl")]
    at = [(line["step"], line["seconds"]) for line in lines if line["event"] == "train"][:-1]
    found[f"training step, {name}"] = min((b[1] - a[1]) / (b[0] - a[0]) for a, b in zip(at[1:], at[2:]))
    bundle = gptloom.load(result.run, device="cpu", which="latest")
    for rows in (1, 32):
        tries = []
        for _ in range(6):
            start = time.perf_counter()
            bundle.generate("The ", tokens=tokens, samples=rows)
            tries.append(time.perf_counter() - start)
        found[f"sampling, {name}, {rows} at once"] = min(tries) / tokens
print(json.dumps(found))
"""

COMMANDS = {
    "gptloom --help": ["--help"],
    "gptloom train --help": ["train", "--help"],
    "gptloom sample, 1 token": ["sample", "RUN", "--tokens", "1", "--device", "cpu"],
}
"""Commands whose whole process is timed."""


def main() -> None:
    """Measure all rounds, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="the commit to compare with")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, help="a JSON file for all times")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        archive = subprocess.run(["git", "archive", args.base, "src"], cwd=ROOT, capture_output=True, check=True).stdout
        with tarfile.open(fileobj=BytesIO(archive)) as sources_of_base:
            sources_of_base.extractall(folder / "base", filter="data")
        (folder / "text.txt").write_text(TEXT)
        sources = {"base": folder / "base" / "src", "this": ROOT / "src"}
        times: dict[str, dict[str, list[float]]] = {side: {} for side in sources}
        for number in range(args.rounds):
            for side in sorted(sources, reverse=bool(number % 2)):
                for key, seconds in measure(sources[side], folder, f"{side}-{number}").items():
                    times[side].setdefault(key, []).append(seconds)
            print(f"round {number + 1} of {args.rounds}", file=sys.stderr, flush=True)
            if args.out:
                args.out.write_text(json.dumps(times, indent=1) + "\n")
    show(times)


def show(times: dict[str, dict[str, list[float]]]) -> None:
    """Print the table."""
    print(f"{'':32} {'base':>10} {'this':>10}   ratio (least, most)")
    for key, base in times["base"].items():
        this = times["this"][key]
        ratios = sorted(a / b for a, b in zip(this, base, strict=True))
        spread = f"{statistics.median(ratios):.3f} ({ratios[0]:.3f}, {ratios[-1]:.3f})"
        print(f"{key:32} {1e3 * statistics.median(base):7.2f} ms {1e3 * statistics.median(this):7.2f} ms   {spread}")


def measure(source: Path, folder: Path, name: str) -> dict[str, float]:
    """All times of one side in one round, in seconds."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"PYTHONPATH": str(source), "XDG_CACHE_HOME": str(folder / "cache")}
    environment["PYTHONPYCACHEPREFIX"] = str(folder / "bytecode" / name.split("-")[0])
    run = [sys.executable, "-c", WORK, str(folder / "text.txt"), str(folder / name)]
    done = subprocess.run(run, env=environment, cwd=folder, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    for key, words in COMMANDS.items():
        words = [str(folder / name / "tiny") if word == "RUN" else word for word in words]
        command, tries = [sys.executable, "-m", "gptloom", *words], []
        for _ in range(4):
            start = time.perf_counter()
            subprocess.run(command, env=environment, cwd=folder, stdout=subprocess.DEVNULL, check=True)
            tries.append(time.perf_counter() - start)
        found[key] = min(tries)
    return found


if __name__ == "__main__":
    main()
