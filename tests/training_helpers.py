"""A small text, small settings, and ways to run and to interrupt a training."""

import json
from pathlib import Path

import gptloom
from gptloom.training.callbacks import Request
from gptloom.training.progress import Display

SMALL = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 16}
WORDS = "the quick brown fox jumps over the lazy dog and then it sleeps until the sun is up again\n"


def write_text(folder: Path, repeats: int = 40) -> Path:
    """About 3,500 characters that differ from line to line."""
    path = folder / "text.txt"
    path.write_text("".join(f"{number}: {WORDS[number % 20 :]}" for number in range(repeats)), encoding="utf-8")
    return path


class Quiet(Display):
    """Collects the messages, and can stop the run at a step as a signal would."""

    def __init__(self, stop_at=None):
        self.lines = []
        super().__init__(self.lines.append)
        self.stop_at = stop_at

    def after_step(self, view):
        super().after_step(view)
        return Request.STOP | Request.SAVE if view.step == self.stop_at else Request.NOTHING


def small_run(text, run, *, model=None, train=None, **settings):
    """Train a very small model with the public function."""
    train = {"steps": 12, "batch_size": 4, "log_every": 1, "sample_tokens": 5, **(train or {})}
    data = {"cache": str(Path(run).parent / "cache"), **settings.pop("data", {})}
    return gptloom.train(
        text, recipe="tiny", run=run, device="cpu", model=SMALL | (model or {}), train=train, data=data, **settings
    )


def metrics(run, event="train"):
    """The lines of metrics.jsonl with this event."""
    lines = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line["event"] == event]


def losses(run):
    """Training losses by step."""
    return {line["step"]: line["loss"] for line in metrics(run)}


def checkpoint_bytes(run, name="latest"):
    """The weights and the optimizer of a checkpoint, as bytes."""
    folder = Path(run) / "checkpoints" / (Path(run) / name).read_text(encoding="utf-8").strip()
    return {file: (folder / file).read_bytes() for file in ("model.safetensors", "optimizer.safetensors")}
