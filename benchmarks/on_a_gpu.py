"""Benchmarks for a CUDA device: the recipe `baby` against nanoGPT, several seeds, the MFU of gpt2, and sampling.

    python benchmarks/on_a_gpu.py --nanogpt PATH [--seeds 5] [--out FILE]

PATH is a checkout of nanoGPT with data/shakespeare_char prepared. The GPU command of its README runs once. Then
`gptloom train shakespeare --recipe baby` runs with each seed. The script measures the seconds from launch to a
validation loss of 1.4697 (nanoGPT's published best), the final loss on the whole split, and the best checkpoint's loss
by nanoGPT's protocol (200 random batches of 64 windows). Then `gptloom bench --recipe gpt2 --only step` measures the
share of the device's published rate, and the last run samples 2,048 tokens. It has not been run yet, for there was no
GPU. Prints one JSON object.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import gptloom
from gptloom.bundle import Bundle

# isort: split
import numpy as np
import peers
import torch

from gptloom.config.run import IGNORE_INDEX
from gptloom.data.batches import Batches
from gptloom.data.tokens import Tokens
from gptloom.devices import describe_machine
from gptloom.model.loss import Objective

DEVICE, WANTED = "cuda", 1.4697


def nanogpt_seconds(checkout: Path, folder: Path) -> float:
    """Run the GPU command of nanoGPT's README; return its seconds from start to end."""
    start = time.perf_counter()
    command = [sys.executable, "train.py", "config/train_shakespeare_char.py", f"--out_dir={folder}/nanogpt"]
    subprocess.run(command, cwd=checkout, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def baby(folder: Path, seed: int, validation: str) -> dict[str, Any]:
    """Run one training; measure the time from launch until its validation loss is low enough."""
    run = folder / f"baby-{seed}"
    command = [
        sys.executable,
        "-m",
        "gptloom",
        "train",
        "shakespeare",
        "--recipe",
        "baby",
        "--device",
        DEVICE,
        "--seed",
        str(seed),
        "--run",
        str(run),
    ]
    start = time.perf_counter()
    subprocess.run([*command, "--json"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    whole = time.perf_counter() - start
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    looks = [row for row in rows if row["event"] == "evaluation"]
    before = whole - max(row["seconds"] for row in looks)  # the time of launch and end; all of it counts as launch
    reached = next((before + row["seconds"] for row in looks if row["loss"] <= WANTED), None)
    return {
        "seed": seed,
        "seconds": round(whole, 1),
        "seconds to it": None if reached is None else round(reached, 1),
        "last loss": looks[-1]["loss"],
        "best loss": min(row["loss"] for row in looks),
        "best checkpoint by nanoGPT's protocol": random_windows(run, validation),
    }


@torch.no_grad()
def random_windows(run: Path, text: str) -> float:
    """The mean over 200 batches of 64 random windows."""
    bundle = Bundle.load(run, device=DEVICE)
    tokens = Tokens(bundle.tokenizer.encode(text), np.zeros(1, dtype=np.int64))
    batches = Batches(tokens, block_size=bundle.model.config.block_size, batch_size=64, seed=0, sampling="random")
    objective, nats, count = Objective(bundle.model).eval(), 0.0, 0
    for step in range(200):
        inputs, targets = (part.to(bundle.model.device) for part in batches.batch(step))
        nats, count = nats + float(objective(inputs, targets)[0]), count + int((targets != IGNORE_INDEX).sum())
    return round(nats / count, 4)


def sampling(run: Path) -> float:
    """Tokens per second of one text, after a warm-up text."""
    bundle = Bundle.load(run, device=DEVICE)
    bundle.generate("\n", tokens=64)
    start = time.perf_counter()
    bundle.generate("\n", tokens=2048)
    return round(2048 / (time.perf_counter() - start), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, required=True, metavar="PATH")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="where to keep the JSON, besides printing it")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(3, "error: this machine has no CUDA device\n")
    checkout = args.nanogpt.resolve()
    text = (checkout / "data/shakespeare_char/input.txt").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result: dict[str, Any] = {
            **describe_machine(),
            "gptloom": gptloom.__version__,
            "nanogpt seconds": nanogpt_seconds(checkout, folder),
        }
        runs = result["baby"] = [
            baby(folder, seed, text[int(len(text) * 0.9) :]) for seed in range(1337, 1337 + args.seeds)
        ]
        result["best loss"] = peers.spread(run["best loss"] for run in runs)
        command = [
            sys.executable,
            "-m",
            "gptloom",
            "bench",
            "--recipe",
            "gpt2",
            "--only",
            "step",
            "--device",
            DEVICE,
            "--out",
            f"{folder}/bench",
            "--json",
        ]
        result["bench of gpt2"] = json.loads(
            subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        )
        result["tokens a second, one stream"] = sampling(folder / f"baby-{1337 + args.seeds - 1}")
    print(text := json.dumps(result, indent=2))
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
