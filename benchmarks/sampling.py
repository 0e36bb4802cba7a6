"""How fast text is written: against the lecture's way and nanoGPT's, 32 texts against one, int8 against float32.

    python benchmarks/sampling.py [--nanogpt PATH] [--pairs 9] [--out FILE]

Everything runs in this process, on freshly drawn weights (a token costs the same whatever they are), the two sides of a
pair in turn; tokens are drawn at temperature 1, each side by its own means. Shapes: the lecture's (209,729 parameters,
context 32), 256 tokens from one; and the baby's (10.65M, context 256), from one token, and where the context is full:
nanoGPT then reads 256 tokens for each that it writes, and gptloom a cached one, and half a context anew at every 128th,
which is counted. Prints one JSON object: tokens a second (median), the ratios' medians, least and most over the pairs,
what share of the memory's bandwidth the weights' reading takes, and whether greedy text was the same with the cache and
without.
"""

import argparse
import contextlib
import json
import statistics
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
from gptloom.config.run import SampleConfig
from gptloom.devices import cores, describe_machine, threads
from gptloom.fast.int8 import quantise
from gptloom.generate.batch import DecodeBatch
from gptloom.model.base import LanguageModel
from gptloom.model.transformer import Decoder
from gptloom.reference import PlainGPT

VOCABULARY, LECTURE, BABY = 65, 32, 256


def rate(tokens: int, action: Callable[[int], object]) -> float:
    """Tokens a second of an action that writes so many."""
    start = time.perf_counter()
    action(tokens)
    return tokens / (time.perf_counter() - start)


def compare(
    one: tuple[int, Callable[[int], object]], other: tuple[int, Callable[[int], object]], pairs: int
) -> dict[str, float]:
    """Both in turn; the first's rate as a multiple of the second's."""
    for _, action in (one, other):
        action(8)
    found = [(rate(*one), rate(*other)) for _ in range(pairs)]
    ratios = sorted(a / b for a, b in found)
    print(
        f"{ratios[len(ratios) // 2]:.2f} times, {found[0][0]:.0f} against {found[0][1]:.0f} tokens a second",
        file=sys.stderr,
    )
    return {
        "tokens_per_second": round(statistics.median(a for a, _ in found)),
        "against_tokens_per_second": round(statistics.median(b for _, b in found)),
        "ratio": round(statistics.median(ratios), 2),
        "ratio_min": round(ratios[0], 2),
        "ratio_max": round(ratios[-1], 2),
        "pairs": pairs,
    }


def writer(model: LanguageModel, prompt: list[int], rows: int = 1) -> Callable[[int], None]:
    """Writes on from a prompt, as `Bundle` does; counts the tokens of all rows together."""

    def write(tokens: int) -> None:
        batch = DecodeBatch(model)
        batch.extend([prompt] * rows, SampleConfig(tokens=max(1, tokens // rows), temperature=1.0))
        while batch.step():
            pass

    return write


def same_text(model: LanguageModel, prompt: list[int], tokens: int) -> bool:
    """Whether greedy text with the cache is the text without."""

    def written(cached: bool) -> list[int]:
        batch = DecodeBatch(model, cached=cached)
        batch.add(prompt, SampleConfig(tokens=tokens, temperature=0.0))
        return [token.id for step in iter(batch.step, {}) for token in step.values()]

    return written(True) == written(False)


def nanogpt(checkout: Path) -> torch.nn.Module:
    """Its model in the baby's shape."""
    module = peers.nanogpt(checkout)
    shape = {"block_size": BABY, "vocab_size": VOCABULARY, "n_layer": 6, "n_head": 6, "n_embd": 384}
    with contextlib.redirect_stdout(sys.stderr):  # it tells its number of parameters
        return module.GPT(module.GPTConfig(**shape, dropout=0.0, bias=False)).eval()  # type: ignore[no-any-return]


def bandwidth(count: int) -> float:
    """Bytes a second that this many threads read from memory: the best of several sums over 256 MB."""
    numbers, best = torch.ones(1 << 26), 0.0
    with threads(count):
        for _ in range(8):
            start = time.perf_counter()
            numbers.sum()
            best = max(best, numbers.nbytes / (time.perf_counter() - start))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--nanogpt", type=Path, metavar="PATH", help="a checkout of nanoGPT; without it, that comparison is left out"
    )
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--out", type=Path, help="where to keep the JSON, besides printing it")
    args = parser.parse_args()
    torch.manual_seed(1337)
    shape = {"vocab_size": VOCABULARY, "block_size": LECTURE, "n_embd": 64, "n_head": 4, "n_layer": 4}
    small = Decoder(
        ModelConfig(**shape, mlp="relu", bias="not-qkv", head_bias=True, score_scale="embedding", init="pytorch")
    ).eval()
    plain = PlainGPT(VOCABULARY, LECTURE, 64, 4, 4, scale=64**-0.5).eval()
    baby = Decoder.from_recipe("baby", vocab_size=VOCABULARY).eval()
    assert small.parameter_count() == sum(p.numel() for p in plain.parameters()) == 209_729
    full = torch.randint(VOCABULARY, (BABY,)).tolist()
    ids = torch.tensor([full])

    def plainly(tokens: int) -> None:
        with cores(1):  # its faster choice, and PyTorch's own matrix products
            plain.generate(torch.zeros(1, 1, dtype=torch.int64), tokens)

    result: dict[str, Any] = {"processor": peers.processor(), **describe_machine(), "gptloom": gptloom.__version__}
    result["0.21M, batch 1, against model.plain"] = compare((256, writer(small, [0])), (256, plainly), args.pairs)
    if args.nanogpt:
        theirs = nanogpt(args.nanogpt.resolve())
        assert baby.parameter_count() == sum(p.numel() for p in theirs.parameters())
        result["10.65M, batch 1, full context, against nanoGPT"] = compare(
            (256, writer(baby, full)), (16, lambda n: theirs.generate(ids, n)), args.pairs
        )
    for name, model in (("0.21M", small), ("10.65M", baby)):
        result[f"{name}, 32 rows against one"] = compare(
            (32 * 256, writer(model, [0], 32)), (256, writer(model, [0])), args.pairs
        )
    result["10.65M, full context, 32 rows against one"] = compare(
        (32 * 128, writer(baby, full, 32)), (128, writer(baby, full)), args.pairs
    )
    small8, baby8 = quantise(small), quantise(baby)
    for name, model, other in (("0.21M", small8, small), ("10.65M", baby8, baby)):
        result[f"{name}, batch 1, int8 weights against float32"] = compare(
            (256, writer(model, [0])), (256, writer(other, [0])), args.pairs
        )
    result["10.65M, 32 rows, int8 weights against float32"] = compare(
        (32 * 64, writer(baby8, [0], 32)), (32 * 64, writer(baby, [0], 32)), args.pairs
    )
    read = 4 * sum(p.numel() for name, p in baby.named_parameters() if "position" not in name)
    speed = {f"{count} threads": bandwidth(count) for count in (1, 2)}
    alone = result["10.65M, 32 rows against one"]["against_tokens_per_second"]
    result["memory"] = {f"GB a second, {name}": round(value / 1e9, 1) for name, value in speed.items()} | {
        "share read for the weights, 10.65M, batch 1": {
            name: round(alone * read / value, 2) for name, value in speed.items()
        }
    }
    result["greedy text is the same without the cache"] = {
        "0.21M": same_text(small, [0], 300),
        "10.65M": same_text(baby, full[:250], 40),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
