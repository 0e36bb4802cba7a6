"""Compare gptloom with the CPU command of nanoGPT's README: time to the same loss, and loss after the same time.

    python benchmarks/against_nanogpt.py --nanogpt PATH [--repeats 5] [--minutes 0.07] [--short-only] [--out FILE]

PATH is a checkout of nanoGPT with data/shakespeare_char prepared. Each repeat runs nanoGPT's command, then `gptloom
train shakespeare` with the short budget, then the same with the time that nanoGPT has taken. The time of a process
counts from start to end, with imports, evaluation and saving; for the short run, also the time until its checkpoint
exists. All checkpoints are evaluated on the whole validation split in windows of 64 tokens, which is nanoGPT's context
length; ours are also evaluated with their own context length. Prints one JSON object with the raw figures.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import gptloom  # before PyTorch: it says how its threads wait

# isort: split
import peers
import torch

from gptloom.bundle import Bundle
from gptloom.data.batches import evaluation_windows
from gptloom.data.tokens import Tokens
from gptloom.generate.task import evaluate
from gptloom.model.loss import Objective

README = (
    "--device=cpu --compile=False --eval_iters=20 --log_interval=1 --block_size=64 --batch_size=12 "
    "--n_layer=4 --n_head=4 --n_embd=128"
)
README += " --max_iters=2000 --lr_decay_iters=2000 --dropout=0.0"
"""nanoGPT's README, "I only have a macbook"; its train.py and config/train_shakespeare_char.py come before these."""

WANTED, CONTEXT = 1.88, 64


def seconds(command: list[str], folder: Path) -> float:
    """Seconds that a command takes, from start to end."""
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def validation(checkout: Path) -> str:
    """The last tenth of tiny Shakespeare, as in nanoGPT's prepare.py."""
    text = (checkout / "data/shakespeare_char/input.txt").read_text(encoding="utf-8")
    return text[int(len(text) * 0.9) :]


def our_loss(run: Path, text: str, context: int | None) -> float:
    """Nats per token of a run's best checkpoint, in windows of `context` tokens (default: the model's)."""
    bundle = Bundle.load(run, device="cpu")
    ids = Tokens(bundle.tokenizer.encode(text), torch.zeros(1, dtype=torch.int64).numpy())
    return evaluate(
        Objective(bundle.model),
        evaluation_windows(ids, context or bundle.model.config.block_size, 64),
        device=torch.device("cpu"),
    ).loss


@torch.no_grad()
def their_loss(checkout: Path, folder: Path, text: str) -> float:
    """Nats per token of nanoGPT's checkpoint, computed with its own model."""
    module = peers.nanogpt(checkout)
    saved = torch.load(folder / "ckpt.pt", map_location="cpu", weights_only=True)
    model = module.GPT(module.GPTConfig(**saved["model_args"]))
    model.load_state_dict(saved["model"])
    model.eval()
    vocabulary = {
        character: place
        for place, character in enumerate(
            sorted(set((checkout / "data/shakespeare_char/input.txt").read_text(encoding="utf-8")))
        )
    }
    ids = torch.tensor([vocabulary[character] for character in text])
    nats, count = 0.0, 0
    for start in range(0, len(ids) - 1, CONTEXT):
        window = ids[start : start + CONTEXT + 1]
        _, loss = model(window[None, :-1], window[None, 1:])
        nats, count = nats + loss.item() * (len(window) - 1), count + len(window) - 1
    return nats / count


def repeat(checkout: Path, folder: Path, minutes: float, seed: int, text: str, *, long: bool) -> dict[str, float]:
    """Run nanoGPT, then the short run, and then, unless `short_only`, the run of the same length."""
    theirs = [
        sys.executable,
        "train.py",
        "config/train_shakespeare_char.py",
        *README.split(),
        f"--out_dir={folder}/nanogpt",
    ]
    ours = [sys.executable, "-m", "gptloom", "train", "shakespeare", "--recipe", "tiny", "--seed", str(seed)]
    found = {"nanogpt_seconds": seconds(theirs, checkout)}
    launched = time.time()
    found["short_seconds"] = seconds([*ours, "--minutes", str(minutes), "--run", f"{folder}/short"], folder)
    found["checkpoint_seconds"] = (folder / "short" / "best").stat().st_mtime - launched
    budget = (
        found["nanogpt_seconds"] - 4.0
    ) / 60  # seconds besides training; measured below, and compared with the time taken
    if long:
        found["long_seconds"] = seconds([*ours, "--minutes", f"{budget:.4f}", "--run", f"{folder}/long"], folder)
    found["nanogpt_loss"] = their_loss(checkout, folder / "nanogpt", text)
    for name in ("short", "long")[: 1 + long]:
        found[f"{name}_loss"], found[f"{name}_loss_own_context"] = (
            our_loss(folder / name, text, context) for context in (CONTEXT, None)
        )
    return {name: round(value, 4) for name, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, required=True, metavar="PATH")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=0.07, help="of the short run [0.07]")
    parser.add_argument("--short-only", action="store_true", help="leave the long run out")
    parser.add_argument("--out", type=Path, help="where to keep the JSON, besides printing it")
    args = parser.parse_args()
    checkout, raw = args.nanogpt.resolve(), []
    text = validation(checkout)
    for seed in range(1337, 1337 + args.repeats):
        with tempfile.TemporaryDirectory() as folder:
            raw.append(
                {"seed": seed} | repeat(checkout, Path(folder), args.minutes, seed, text, long=not args.short_only)
            )
        print(json.dumps(raw[-1]), file=sys.stderr, flush=True)
    columns = {name: [row[name] for row in raw] for name in raw[0] if name != "seed"}
    result: dict[str, Any] = {
        "machine": {"processor": peers.processor(), "threads": torch.get_num_threads()},
        "versions": {"gptloom": gptloom.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "nanogpt": README,
        "1 times quicker, to the checkpoint": peers.spread(
            a / b for a, b in zip(columns["nanogpt_seconds"], columns["checkpoint_seconds"], strict=True)
        ),
        "1 times quicker, to the end of the command": peers.spread(
            a / b for a, b in zip(columns["nanogpt_seconds"], columns["short_seconds"], strict=True)
        ),
        f"1 all at most {WANTED}": max(columns["short_loss"]) <= WANTED,
        "2 all within nanoGPT's time": all(
            row["nanogpt_seconds"] >= row["long_seconds"] for row in raw if "long_seconds" in row
        ),
        **{name: peers.spread(values) for name, values in columns.items()},
        "raw": raw,
    }
    print(written := json.dumps(result, indent=2))
    if args.out:
        args.out.write_text(written + "\n")


if __name__ == "__main__":
    main()
