"""Compare the training speed of gptloom with that of `gptloom.reference` (the lecture's code) and of nanoGPT.

    python benchmarks/against_plain.py [--nanogpt PATH] [--out FILE]

All models run in turn in this process: batch 16, context 32, width 64, 4 heads, 4 layers, no dropout, no compiler. Our
model and the lecture's have the same 209,729 parameters and AdamW; nanoGPT has its own model of this shape, with its
clipping and its optimizer. The others use PyTorch's defaults, ours `devices.threads`. Prints one JSON object
with milliseconds, and ratios with their spread over the rounds. (`gptloom bench` shows the share of matrix products.)
"""

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gptloom  # before PyTorch: it says how its threads wait

# isort: split
import peers
import torch

from gptloom.config.model import ModelConfig
from gptloom.config.run import TrainConfig
from gptloom.devices import threads
from gptloom.fast.train import TrainingPass
from gptloom.model.loss import Objective
from gptloom.model.transformer import Decoder
from gptloom.reference.lecture import PlainGPT
from gptloom.training.optim import make_optimizer

VOCABULARY, BLOCK, WIDTH, HEADS, LAYERS, BATCH = 65, 32, 64, 4, 4, 16
ROUNDS, STEPS = 15, 20


def milliseconds(action: Callable[[], object]) -> float:
    """Mean duration of several calls, after one warm-up call."""
    action()
    start = time.perf_counter()
    for _ in range(STEPS):
        action()
    return 1000 * (time.perf_counter() - start) / STEPS


def our_step(inputs: torch.Tensor, targets: torch.Tensor) -> Callable[[], object]:
    shape = {"vocab_size": VOCABULARY, "block_size": BLOCK, "n_embd": WIDTH, "n_head": HEADS, "n_layer": LAYERS}
    model = Decoder(
        ModelConfig(**shape, mlp="relu", bias="not-qkv", head_bias=True, score_scale="embedding", init="pytorch")
    )
    assert model.parameter_count() == 209_729
    optimizer = make_optimizer(model, TrainConfig(learning_rate=1e-3, beta2=0.999, weight_decay=0.01, decay="all"))
    both_passes = TrainingPass(Objective(model), optimizer.zero_grad)

    def step() -> None:
        both_passes((inputs, targets), 1.0 / targets.numel())
        optimizer.step()

    return step


def plain_step(inputs: torch.Tensor, targets: torch.Tensor) -> Callable[[], object]:
    model = PlainGPT(VOCABULARY, BLOCK, WIDTH, HEADS, LAYERS, scale=WIDTH**-0.5)
    assert sum(p.numel() for p in model.parameters()) == 209_729
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def step() -> None:
        loss = model.loss(inputs, targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def nanogpt_step(checkout: Path, inputs: torch.Tensor, targets: torch.Tensor) -> Callable[[], object]:
    module = peers.nanogpt(checkout)
    with contextlib.redirect_stdout(sys.stderr):
        model = module.GPT(
            module.GPTConfig(
                block_size=BLOCK,
                vocab_size=VOCABULARY,
                n_layer=LAYERS,
                n_head=HEADS,
                n_embd=WIDTH,
                dropout=0.0,
                bias=True,
            )
        )
        optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), "cpu")

    def step() -> None:
        _, loss = model(inputs, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--nanogpt", type=Path, metavar="PATH", help="a checkout of nanoGPT; without it, that comparison is left out"
    )
    parser.add_argument("--out", type=Path, help="where to keep the JSON, besides printing it")
    args = parser.parse_args()
    torch.manual_seed(1337)
    batch = torch.randint(VOCABULARY, (2, BATCH, BLOCK)).unbind()
    sides = {"plain": plain_step(*batch)} | (
        {"nanogpt": nanogpt_step(args.nanogpt.resolve(), *batch)} if args.nanogpt else {}
    )
    ours, found = our_step(*batch), {name: [] for name in ("ours", *sides)}
    for _ in range(ROUNDS):
        for name, step in sides.items():
            found[name].append(milliseconds(step))
        with threads(None):
            found["ours"].append(milliseconds(ours))
    result: dict[str, Any] = {
        "processor": peers.processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "gptloom": gptloom.__version__,
    }
    result["milliseconds a training step"] = {name: peers.spread(times, 3) for name, times in found.items()}
    for name in sides:
        result[f"{name} / ours"] = peers.spread((a / b for a, b in zip(found[name], found["ours"], strict=True)), 2)
    print(text := json.dumps(result, indent=2))
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
