"""Trainings of a few steps in a folder that goes again: the same way that `gptloom train` takes, on an excerpt of the text."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from gptloom.config import DataConfig, RunConfig
from gptloom.locate import find_bundle
from gptloom.studies.verifying.opening import write_text
from gptloom.studies.verifying.subject import Subject
from gptloom.tasks import reads_pairs
from gptloom.training.callbacks import Request, View
from gptloom.training.display import Display
from gptloom.training.run import resume, train
from gptloom.training.session import Result

STEPS = 4


@contextmanager
def workshop(subject: Subject) -> Iterator[tuple[Path, str]]:
    """A folder for runs, and the text for them. What they would say goes nowhere, and what they draw changes nothing outside."""
    with tempfile.TemporaryDirectory() as name, redirect_stderr(StringIO()), torch.random.fork_rng(devices=[]):
        folder = Path(name)
        subject.bundle.tokenizer.save(folder)
        yield folder, str(write_text(folder, subject.excerpt, pairs=reads_pairs(subject.model)))


def settings(subject: Subject, folder: Path, *, dropout: float, ranks: int = 1) -> RunConfig:
    """The run's own settings for a short training on the CPU, in float32.

    Args:
        subject: whose settings.
        folder: of the workshop.
        dropout: instead of the run's own.
        ranks: processes.
    """
    train = subject.config.train.model_copy(
        update={"steps": STEPS, "minutes": None, "epochs": None, "batch_size": subject.rows, "micro_batch_size": None, "patience": None, "compile": "off"}
        | {"eval_every": 1, "log_every": 1, "save_every": None, "sample_tokens": 0, "tensorboard": False, "precision": "float32", "warmup_steps": 2}
        | {"eval_batch_size": 2 * subject.rows, "ranks": ranks, "on_divergence": "stop", "on_save_failure": "stop"}
    )
    room = subject.model.block_size if reads_pairs(subject.model) else subject.time  # pairs must fit whole, windows need not
    model = subject.model.model_copy(update={"dropout": dropout, "attn_dropout": None, "embd_dropout": None, "block_size": room})
    data = DataConfig(tokenizer=str(folder / "tokenizer.json"), on_unknown="skip", cache=str(folder), sampling=subject.config.data.sampling)
    return subject.config.model_copy(update={"train": train, "model": model, "data": data, "device": "cpu", "seed": subject.seed})


def run_short(text: str, config: RunConfig, run: Path, *, stop_at: int | None = None) -> None:
    """Train from the beginning, to the end or to a step."""
    _heed(train([text], config, run=run, display=_Silent(stop_at)))


def resume_short(run: Path) -> None:
    """Go on with a run to its end."""
    _heed(resume(run, {}, display=_Silent(None)))


def _heed(result: Result) -> None:
    """A signal that a training has taken for itself was meant for all of this."""
    if result.signal is not None:
        raise KeyboardInterrupt


class _Silent(Display):
    """Says nothing, and can stop a run after a step, as a signal would."""

    def __init__(self, stop_at: int | None) -> None:
        super().__init__(lambda _line: None)
        self.stop_at = stop_at

    def after_step(self, view: View) -> Request:
        return Request.STOP | Request.SAVE if view.step == self.stop_at else Request.NOTHING


class Record:
    """What a run left.

    Attributes:
        losses: (event, step) to loss, of training and of evaluation, in the order of the file.
        tensors: every number of the last checkpoint.
    """

    def __init__(self, run: Path) -> None:
        """Read it."""
        lines: list[dict[str, Any]] = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        self.losses = [((str(line["event"]), int(line["step"])), float(line["loss"])) for line in lines if line["event"] in ("train", "evaluation")]
        folder = find_bundle(run, "latest")
        self.tensors = {f"{file} {key}": t for file in ("model", "optimizer") for key, t in load_file(folder / f"{file}.safetensors").items()}
