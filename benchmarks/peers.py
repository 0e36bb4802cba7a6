"""Shared by the benchmarks: import nanoGPT's code from a path, name the processor, and summarise figures."""

import importlib.util
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

TINY_STEP = """
from gptloom.model.build import build_model
from gptloom.model.loss import Objective
from gptloom.fast.train import TrainingPass
from gptloom.devices import threads
from gptloom.config.load import resolve
from gptloom.training.optim import make_optimizer
config = resolve("tiny")
model = build_model(config.model)
optimizer, ids = make_optimizer(model, config.train), torch.randint(65, (8, 128))
both_passes = TrainingPass(Objective(model), optimizer.zero_grad)
def step():
    both_passes((ids, ids), 1.0 / ids.numel())
    optimizer.step()
with threads(None):
    for _ in range(10): step()
    start, steps = time.perf_counter(), 0
    while time.perf_counter() - start < 3.0:
        step()
        steps += 1
print(1000 * (time.perf_counter() - start) / steps)
"""
"""Source of a process that prints the milliseconds of a training step of `tiny`, over three seconds.

Another piece of source imports time and torch before it."""


def nanogpt(checkout: Path) -> ModuleType:
    """Import the model.py of a checkout of nanoGPT."""
    if not (checkout / "model.py").is_file():
        sys.exit(f"error: {checkout} has no model.py; give the folder of a checkout of nanoGPT")
    spec = importlib.util.spec_from_file_location("nanogpt_model", checkout / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["nanogpt_model"] = module
    spec.loader.exec_module(module)
    return module


def processor() -> str:
    """The processor's name on Linux."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def spread(values: Iterable[float], digits: int = 4) -> dict[str, float]:
    """The median, minimum and maximum."""
    values = list(values)
    return {
        "median": round(statistics.median(values), digits),
        "min": round(min(values), digits),
        "max": round(max(values), digits),
    }
