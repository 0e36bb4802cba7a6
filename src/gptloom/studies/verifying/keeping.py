"""Checks of what is kept: a saved model is loaded as it was, and a run that is stopped and resumed ends as if it had not been."""

import json
import tempfile
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from gptloom.bundle import Bundle
from gptloom.config import DataConfig, RunConfig
from gptloom.model.base import LanguageModel
from gptloom.studies.verifying.opening import write_text
from gptloom.studies.verifying.rounding import Outcome, worst
from gptloom.studies.verifying.subject import Subject, logits
from gptloom.tasks import reads_pairs
from gptloom.training.callbacks import Request, View
from gptloom.training.display import Display
from gptloom.training.run import resume, train

STEPS = 4
DROPOUT = 0.1


def saved(subject: Subject) -> Outcome:
    """Numbers that differ between a model and what is loaded after saving it; weights that are shared, and logits, to the last bit."""
    *inputs, _ = subject.batch()
    found = []
    for model in subject.models:
        with tempfile.TemporaryDirectory() as name:
            Bundle(model, subject.bundle.tokenizer).save(Path(name))
            loaded = Bundle.load(name, device="cpu")
        weights, others = dict(model.named_parameters()), dict(loaded.model.named_parameters())
        wrong = sum(int((p != others[key]).sum()) if key in others and others[key].shape == p.shape else p.numel() for key, p in weights.items())
        wrong += sum(p.numel() for key, p in others.items() if key not in weights)
        found += [
            Outcome(float(wrong), 0.0, "numbers of the weights"),
            Outcome(float(len(_shared(model) ^ _shared(loaded.model))), 0.0, "shared weights"),
            Outcome(float((logits(loaded.model, *inputs) != logits(model.eval(), *inputs)).sum()), 0.0, "logits"),
            Outcome(float(loaded.tokenizer.fingerprint != subject.bundle.tokenizer.fingerprint), 0.0, "the tokenizer"),
        ]
    return worst(found)


def _shared(model: LanguageModel) -> set[tuple[str, ...]]:
    """The groups of names that stand for one and the same tensor."""
    names: dict[int, list[str]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(p), []).append(name)
    return {tuple(sorted(group)) for group in names.values() if len(group) > 1}


def resumed(subject: Subject) -> Outcome:
    """Steps whose loss, and weights and optimizer numbers that, differ between a run of four steps and one stopped after two."""
    with tempfile.TemporaryDirectory() as name, redirect_stderr(StringIO()):
        folder = Path(name)
        text = write_text(folder, subject.excerpt, pairs=reads_pairs(subject.model))
        subject.bundle.tokenizer.save(folder)
        config = _settings(subject, folder)
        with torch.random.fork_rng(devices=[]):
            train([str(text)], config, run=folder / "whole", display=_Silent(None))
            train([str(text)], config, run=folder / "parts", display=_Silent(STEPS // 2))
            resume(folder / "parts", {}, display=_Silent(None))
        whole, parts = _Record(folder / "whole"), _Record(folder / "parts")
        wrong = sum(a != b for a, b in zip(whole.losses, parts.losses, strict=False)) + abs(len(whole.losses) - len(parts.losses))
        return worst(
            [
                Outcome(float(wrong), 0.0, "losses by step"),
                Outcome(float(whole.steps != parts.steps or whole.steps[0] != list(range(1, STEPS + 1))), 0.0, "steps"),
                Outcome(float(_differences(whole.tensors, parts.tensors)), 0.0, "weights and optimizer"),
            ]
        )


def _settings(subject: Subject, folder: Path) -> RunConfig:
    """The run's own settings for a short training on the CPU, where bits can be compared; with some dropout, which must be resumed too."""
    train = subject.config.train.model_copy(
        update={"steps": STEPS, "minutes": None, "epochs": None, "batch_size": subject.rows, "micro_batch_size": None, "patience": None, "compile": "off"}
        | {"eval_every": 1, "log_every": 1, "save_every": None, "sample_tokens": 0, "tensorboard": False, "precision": "float32", "warmup_steps": 2}
        | {"eval_batch_size": 2 * subject.rows}
    )
    model = subject.model.model_copy(update={"dropout": max(DROPOUT, subject.model.dropout), "block_size": _room(subject)})
    data = DataConfig(tokenizer=str(folder / "tokenizer.json"), on_unknown="skip", cache=str(folder), sampling=subject.config.data.sampling)
    return subject.config.model_copy(update={"train": train, "model": model, "data": data, "device": "cpu", "seed": subject.seed})


def _room(subject: Subject) -> int:
    """A context for this training: pairs must fit whole, windows need not."""
    return subject.model.block_size if reads_pairs(subject.model) else subject.time


class _Silent(Display):
    """Says nothing, and can stop a run after a step, as a signal would."""

    def __init__(self, stop_at: int | None) -> None:
        super().__init__(lambda _line: None)
        self.stop_at = stop_at

    def after_step(self, view: View) -> Request:
        return Request.STOP | Request.SAVE if view.step == self.stop_at else Request.NOTHING


class _Record:
    """What a run left: the loss of each step, and every number of its last checkpoint."""

    def __init__(self, run: Path) -> None:
        from safetensors.torch import load_file

        lines: list[dict[str, Any]] = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        self.losses = [line["loss"] for line in lines if line["event"] in ("train", "evaluation")]
        self.steps = [[line["step"] for line in lines if line["event"] == event] for event in ("train", "evaluation")]
        folder = run / "checkpoints" / (run / "latest").read_text(encoding="utf-8").strip()
        self.tensors = {f"{file} {key}": t for file in ("model", "optimizer") for key, t in load_file(folder / f"{file}.safetensors").items()}


def _differences(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> int:
    both = one.keys() & other.keys()
    return len(one.keys() ^ other.keys()) + sum(int((one[key] != other[key]).sum()) for key in both)
