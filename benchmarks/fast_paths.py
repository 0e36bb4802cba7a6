"""Benchmark of the hand-written passes of `gptloom.fast` against the model itself.

    python benchmarks/fast_paths.py [--rounds 9] [--out FILE]

Both sides of a pair run in this process, in turn, on the same model with freshly drawn weights and the same threads.
Training: the passes of one batch, by `fast/train.py` and by autograd. Decoding: one token of each row, by
`fast/decode.py` and by the model with its cache. Prints one JSON object: ratios (median, least, most over the rounds).
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import gptloom  # before PyTorch: it says how its threads wait

# isort: split
import peers
import torch

from gptloom.config.load import resolve
from gptloom.config.model import ModelConfig
from gptloom.devices import describe_machine, threads
from gptloom.fast.decode import Reference, make_stepper
from gptloom.fast.int8 import quantise
from gptloom.fast.train import TrainingPass
from gptloom.model.build import build_model
from gptloom.model.loss import Objective

LECTURE = {"vocab_size": 65, "block_size": 32, "n_layer": 4, "n_head": 4, "n_embd": 64}
BABY = {"vocab_size": 65, "block_size": 256, "n_layer": 6, "n_head": 6, "n_embd": 384}


def ratios(
    fast: Callable[[], object], slow: Callable[[], object], rounds: int, seconds: float = 0.3
) -> dict[str, float]:
    """The slow side's time as a multiple of the fast side's."""

    def mean(action: Callable[[], object]) -> float:
        action()
        start, done = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            action()
            done += 1
        return (time.perf_counter() - start) / done

    found = []
    for _ in range(rounds):
        quick = mean(fast)
        found.append(mean(slow) / quick)
    return peers.spread(found, 2)


def training(config: ModelConfig, rows: int, rounds: int) -> dict[str, float]:
    """One batch forward and backward."""
    model = build_model(config).train()
    both = TrainingPass(Objective(model), model.zero_grad)
    ids = torch.randint(config.vocab_size, (rows, config.block_size))
    share = 1.0 / ids.numel()
    both((ids, ids), share)
    assert both.path == "fast", both.why
    return ratios(lambda: both((ids, ids), share), lambda: both.by_autograd((ids, ids), share, True), rounds)


def decoding(config: ModelConfig, rows: int, rounds: int, *, int8: bool = False) -> dict[str, float]:
    """One token of each row, half-way through the context; with int8, against the fast path in float32."""
    model = build_model(config).eval()
    slow = make_stepper(model) if int8 else Reference(model)
    fast = make_stepper(quantise(model) if int8 else model)
    assert not isinstance(fast, Reference)

    def step(stepper: Callable[..., object]) -> Callable[[], object]:
        state = model.init_cache(rows, config.block_size)
        stepper([[1] * (config.block_size // 2)] * rows, state)
        lengths = list(state.lengths)

        def one() -> object:
            state.lengths = list(lengths)
            return stepper([[2]] * rows, state)

        return one

    return ratios(step(fast), step(slow), rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    lecture, baby = ModelConfig(**LECTURE), ModelConfig(**BABY)
    tiny, encoder = resolve("tiny"), resolve("encoder")
    with threads(None):
        found = {
            "a training step's passes, lecture (0.21M)": training(lecture, 16, args.rounds),
            "a training step's passes, tiny": training(tiny.model, tiny.train.batch_size, args.rounds),
            "a training step's passes, encoder": training(encoder.model, encoder.train.batch_size, args.rounds),
            "decoding, 1 row, lecture": decoding(lecture, 1, args.rounds),
            "decoding, 1 row, tiny": decoding(tiny.model, 1, args.rounds),
            "decoding, 1 row, 10.65M": decoding(baby, 1, args.rounds),
            "decoding, 32 rows, 10.65M": decoding(baby, 32, args.rounds),
            "int8 over float32, 1 row, 10.65M": decoding(baby, 1, args.rounds, int8=True),
        }
    result = {"gptloom": gptloom.__version__, "processor": peers.processor(), **describe_machine(), "ratios": found}
    print(json.dumps(result, indent=2))
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
