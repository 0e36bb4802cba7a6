"""Measure the effects of `devices.threads`: oneDNN's matrix products instead of MKL's, and memory that is not freed.

    python benchmarks/products.py

First, the matrix products of the tiny recipe's training step are timed with PyTorch's switch off and on, and their
largest errors against float64 are measured (for numbers between -1 and 1). Then whole training steps are timed in new
processes, five times each in turn: with both, without the switch, without keeping memory, and without both. Prints JSON
with medians, minima and maxima.
"""

import json
import statistics
import subprocess
import sys
import time

import peers
import torch

SHAPES = {
    "qkv": (1024, 128, 384),
    "out": (1024, 128, 128),
    "up": (1024, 128, 512),
    "down": (1024, 512, 128),
    "up, gradient of weights": (512, 1024, 128),
}

STEP = """
import sys, time
from gptloom import runtime  # before torch: it says how its threads wait
import torch
if "mkl" in sys.argv: runtime._multiplies_better_with_onednn = lambda: False
if "fresh" in sys.argv: runtime.keep_memory = lambda: None
"""


def spread(values: list[float], digits: int) -> list[float]:
    """The median, minimum and maximum."""
    return [round(pick(values), digits) for pick in (statistics.median, min, max)]


def product(shape: tuple[int, int, int]) -> dict[str, object]:
    """GFLOP/s and errors, with the switch off and on."""
    n, k, m = shape
    a, b = torch.rand(n, k) * 2 - 1, torch.rand(k, m) * 2 - 1
    exact, switch = a.double() @ b.double(), torch.backends.mkldnn.matmul
    rates: dict[str, list[float]] = {"ieee": [], "bf16": []}
    errors = {}
    before = switch.fp32_precision
    for _ in range(15):
        for setting, found in rates.items():
            switch.fp32_precision = setting
            errors[setting] = float(((a @ b) - exact).abs().max())
            start = time.perf_counter()
            for _ in range(20):
                a @ b
            found.append(20 * 2e-9 * n * k * m / (time.perf_counter() - start))
    switch.fp32_precision = before
    names = {"ieee": "off", "bf16": "on"}
    return {
        names[setting]: {"GFLOP/s": spread(found, 1), "error": float(f"{errors[setting]:.1e}")}
        for setting, found in rates.items()
    }


def main() -> None:
    print(
        json.dumps(
            {
                "capability": torch.backends.cpu.get_cpu_capability(),
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
            }
        )
    )
    for name, shape in SHAPES.items():
        print(json.dumps({"product": name, "shape": shape, **product(shape)}), flush=True)
    settings = {
        "as the library runs them": [],
        "without the switch": ["mkl"],
        "without keeping memory": ["fresh"],
        "without both": ["mkl", "fresh"],
    }
    found: dict[str, list[float]] = {name: [] for name in settings}
    for _ in range(5):
        for name, words in settings.items():
            found[name].append(
                float(
                    subprocess.run(
                        [sys.executable, "-c", STEP + peers.TINY_STEP, *words],
                        check=True,
                        capture_output=True,
                        text=True,
                    ).stdout
                )
            )
    print(json.dumps({"milliseconds a step of tiny": {name: spread(times, 1) for name, times in found.items()}}))


if __name__ == "__main__":
    main()
