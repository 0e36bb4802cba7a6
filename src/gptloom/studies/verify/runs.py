"""Checks that train for a few steps in a temporary folder, with the code of `gptloom train`, on an excerpt of the text.

`saved` compares a saved model with the loaded one. `resumed` compares a run that was stopped and resumed with an
uninterrupted run. `two_ranks` compares a run of two processes (gloo) with a run of one.
"""

import json
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file

from gptloom.bundle import Bundle
from gptloom.checkpoint.format import find_bundle
from gptloom.config.run import DataConfig, RunConfig
from gptloom.model.base import LanguageModel
from gptloom.reference.formulas import length
from gptloom.studies.verify.open import write_text
from gptloom.studies.verify.subject import Subject, gradients, logits
from gptloom.studies.verify.tolerance import Impossible, Outcome, worst
from gptloom.training.callbacks import Request, View
from gptloom.training.progress import Display
from gptloom.training.run import begin, resume, train
from gptloom.training.session import Result

STEPS = 4


@contextmanager
def temporary_run(subject: Subject) -> Iterator[tuple[Path, str]]:
    """Yield a temporary folder for runs, and the path of their text.

    Messages to standard error are discarded, and the random state is restored afterwards.
    """
    with tempfile.TemporaryDirectory() as name, redirect_stderr(StringIO()), torch.random.fork_rng(devices=[]):
        folder = Path(name)
        subject.bundle.tokenizer.save(folder)
        yield folder, str(write_text(folder, subject.excerpt, pairs=subject.task.pairs))


def settings(subject: Subject, folder: Path, *, dropout: float, ranks: int = 1) -> RunConfig:
    """The subject's settings, changed for a short training on the CPU in float32.

    Args:
        subject: the subject.
        folder: the folder of `temporary_run`.
        dropout: the dropout probability; it replaces the subject's.
        ranks: the number of processes.
    """
    train = subject.config.train.model_copy(
        update={
            "steps": STEPS,
            "minutes": None,
            "epochs": None,
            "batch_size": subject.rows,
            "micro_batch_size": None,
            "patience": None,
            "compile": "off",
        }
        | {
            "eval_every": 1,
            "log_every": 1,
            "save_every": None,
            "sample_tokens": 0,
            "tensorboard": False,
            "precision": "float32",
            "warmup_steps": 2,
        }
        | {"eval_batch_size": 2 * subject.rows, "ranks": ranks, "on_divergence": "stop", "on_save_failure": "stop"}
    )
    # A pair must fit into the block; a window may be shorter than the block.
    block_size = subject.model.block_size if subject.task.pairs else subject.time
    model = subject.model.model_copy(
        update={"dropout": dropout, "attn_dropout": None, "embd_dropout": None, "block_size": block_size}
    )
    data = DataConfig(
        tokenizer=str(folder / "tokenizer.json"),
        on_unknown="skip",
        cache=str(folder),
        sampling=subject.config.data.sampling,
    )
    return subject.config.model_copy(
        update={"train": train, "model": model, "data": data, "device": "cpu", "seed": subject.seed}
    )


def run_short(text: str, config: RunConfig, run: Path, *, stop_at: int | None = None) -> None:
    """Train from the beginning, to the end or until step `stop_at`."""
    _reraise_signal(train([text], config, run=run, display=_Silent(stop_at)))


def resume_short(run: Path) -> None:
    """Resume a run and train to its end."""
    _reraise_signal(resume(run, {}, display=_Silent(None)))


def _reraise_signal(result: Result) -> None:
    """Raise KeyboardInterrupt if a signal stopped the training: the signal was meant for the whole command."""
    if result.signal is not None:
        raise KeyboardInterrupt


class _Silent(Display):
    """Prints nothing. It can stop a run after a step, as a signal would."""

    def __init__(self, stop_at: int | None) -> None:
        super().__init__(lambda _line: None)
        self.stop_at = stop_at

    def after_step(self, view: View) -> Request:
        return Request.STOP | Request.SAVE if view.step == self.stop_at else Request.NOTHING


class Record:
    """The losses and the last checkpoint of a run.

    Attributes:
        losses: ((event, step), loss) of training and evaluation, in the order of the file.
        tensors: all tensors of the last checkpoint's model and optimizer.
    """

    def __init__(self, run: Path) -> None:
        """Read a run folder."""
        lines: list[dict[str, Any]] = [
            json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        self.losses = [
            ((str(line["event"]), int(line["step"])), float(line["loss"]))
            for line in lines
            if line["event"] in ("train", "evaluation")
        ]
        folder = find_bundle(run, "latest")
        self.tensors = {
            f"{file} {key}": t
            for file in ("model", "optimizer")
            for key, t in load_file(folder / f"{file}.safetensors").items()
        }


DROPOUT = 0.1


def saved(subject: Subject) -> Outcome:
    """Save each model and load it again; count the differences of weights, shared tensors, logits and tokenizer."""
    *inputs, _ = subject.batch()
    found = []
    for model in subject.models:
        with tempfile.TemporaryDirectory() as name:
            Bundle(model, subject.bundle.tokenizer).save(Path(name))
            loaded = Bundle.load(name, device="cpu")
        weights, others = dict(model.named_parameters()), dict(loaded.model.named_parameters())
        wrong = sum(
            int((p != others[key]).sum()) if key in others and others[key].shape == p.shape else p.numel()
            for key, p in weights.items()
        )
        wrong += sum(p.numel() for key, p in others.items() if key not in weights)
        found += [
            Outcome(float(wrong), 0.0, "numbers of the weights"),
            Outcome(float(len(_shared(model) ^ _shared(loaded.model))), 0.0, "shared weights"),
            Outcome(float((logits(loaded.model, *inputs) != logits(model.eval(), *inputs)).sum()), 0.0, "logits"),
            Outcome(float(loaded.tokenizer.fingerprint != subject.bundle.tokenizer.fingerprint), 0.0, "the tokenizer"),
        ]
    return worst(found)


def _shared(model: LanguageModel) -> set[tuple[str, ...]]:
    """The groups of names that share one tensor."""
    names: dict[int, list[str]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(p), []).append(name)
    return {tuple(sorted(group)) for group in names.values() if len(group) > 1}


def resumed(subject: Subject) -> Outcome:
    """Compare a run of four steps with a run that was stopped after two and resumed.

    The deviation counts losses, and numbers of weights and optimizer state, that differ in any bit.
    """
    with temporary_run(subject) as (folder, text):
        config = settings(subject, folder, dropout=max(DROPOUT, subject.model.dropout))
        run_short(text, config, folder / "whole")
        run_short(text, config, folder / "parts", stop_at=STEPS // 2)
        resume_short(folder / "parts")
        whole, parts = Record(folder / "whole"), Record(folder / "parts")
    # The log has one loss per step, so equal logs mean that both runs read the same batches in the same order.
    unlike = sum(a != b for a, b in zip(whole.losses, parts.losses, strict=False)) + abs(
        len(whole.losses) - len(parts.losses)
    )
    missed = {("train", step) for step in range(1, STEPS + 1)} - {place for place, _ in whole.losses}
    return worst(
        [
            Outcome(float(unlike + len(missed)), 0.0, "losses by step"),
            Outcome(float(_differences(whole.tensors, parts.tensors)), 0.0, "weights and optimizer"),
        ]
    )


def _differences(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> int:
    both = one.keys() & other.keys()
    return len(one.keys() ^ other.keys()) + sum(int((one[key] != other[key]).sum()) for key in both)


def two_ranks(subject: Subject) -> Outcome | Impossible:
    """Compare the training and validation losses of four steps with one and with two ranks.

    Dropout is off, for each rank draws its own masks.
    """
    if not dist.is_available() or not dist.is_gloo_available():
        return Impossible("this PyTorch comes without gloo")
    with temporary_run(subject) as (folder, text):
        records = []
        for ranks in (1, 2):
            config = settings(subject, folder, dropout=0.0, ranks=ranks)
            run_short(text, config, folder / f"ranks-{ranks}")
            records.append(Record(folder / f"ranks-{ranks}"))
        fresh = begin(config, subject.bundle.tokenizer, torch.device("cpu")).model.eval()
    one, two = records
    gap = max(abs(a - b) for (_, a), (_, b) in zip(one.losses, two.losses, strict=False))
    # Two errors add up: the rounding of the losses, and that of the updates. An error e of a gradient g changes AdamW's
    # step by at most 2 lr e / |g|, and so the loss by 2 lr sum(|e|). That sum is at most sqrt(parameters) times the
    # norm of e. A factor of 4 allows for gradients that grow after the first step. ReLU's kinks need no allowance:
    # they change the gradients of a few hundred numbers only.
    batch = subject.ragged_batch(time=min(subject.time, config.model.block_size))
    peak = float(logits(fresh, *batch[:-1]).abs().max())
    slope = length(gradients(fresh, batch)) * subject.smooth_tolerance * math.sqrt(fresh.parameter_count())
    tolerance = 4 * subject.logit_tolerance * (1.0 + peak) + 4 * STEPS * 2 * config.train.learning_rate * slope
    return worst(
        [
            Outcome(gap, tolerance, "losses"),
            Outcome(float([at for at, _ in one.losses] != [at for at, _ in two.losses]), 0.0, "steps"),
        ]
    )
