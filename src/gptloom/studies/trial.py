"""Trials of a study: trainings without a run folder, their expected time, and JSON records that let a study resume."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError

from gptloom.bundle import Bundle
from gptloom.checkpoint.state import Progress
from gptloom.config.load import resolve
from gptloom.config.run import DataConfig, RunConfig
from gptloom.data.sources import open_corpus
from gptloom.data.tokenizers import Tokenizer, make_tokenizer
from gptloom.data.tokens import Split, Tokens, prepare, replacing, split
from gptloom.devices import pick_device, thread_count, threads
from gptloom.errors import ConfigError, DivergedError, InputError
from gptloom.files import read_json
from gptloom.generate.task import Score, evaluate, task_of
from gptloom.model.build import build_model
from gptloom.model.loss import Objective
from gptloom.training.callbacks import Callback, Request, View
from gptloom.training.schedule import make_horizon
from gptloom.training.setup import setup

Record = TypeVar("Record")

LONGEST = 1 << 26
"""Maximum size of a record in bytes. The longest, a ladder's plan, contains the names of all of its texts."""

_CURE = "delete it, and it is made again; or choose another --run"


def read_record(path: Path) -> dict[str, Any]:
    """Read a record.

    Raises:
        InputError: it cannot be read, or is not a JSON object.
    """
    return read_json(path, limit=LONGEST, cure=_CURE)


def read_as(path: Path, kind: type[Record], *, cure: str = _CURE) -> Record:
    """Read a record as a dataclass, with checked fields.

    Raises:
        InputError: it cannot be read, or a field is missing or of another type.
    """
    try:
        return TypeAdapter(kind).validate_python(read_record(path))
    except ValidationError as error:
        key = ".".join(map(str, error.errors()[0]["loc"]))
        raise InputError(
            f"is not a complete record of a {kind.__name__.lower()}: {key} is missing or of the wrong type",
            where=str(path),
            cure=cure,
        ) from None


def write_record(path: Path, values: Mapping[str, Any]) -> None:
    """Write a record atomically; creates its folder.

    Raises:
        MachineError: it cannot be written.
    """
    with replacing(path) as file:
        file.write((json.dumps(values, ensure_ascii=False, indent=1) + "\n").encode())


@dataclass(frozen=True)
class Material:
    """A text prepared once for many trainings.

    Attributes:
        name: a short name, suitable for a folder.
        parts: training and validation tokens.
        tokenizer: the tokenizer.
        text_sha256: hash of the text.
        val_bytes: UTF-8 bytes of the validation targets.
        notes: messages for the user about how the text was read.
    """

    name: str
    parts: Split
    tokenizer: Tokenizer
    text_sha256: str
    val_bytes: int
    notes: list[str]


def open_material(texts: Sequence[str], config: DataConfig) -> Material:
    """Read, tokenize and split a text.

    Raises:
        GptloomError: as `gptloom train` would.
    """
    corpus = open_corpus(texts, config)
    tokenizer = make_tokenizer(config.tokenizer, corpus)
    store = prepare(corpus, tokenizer, config)
    val_store = None if config.val_text is None else prepare(open_corpus([config.val_text], config), tokenizer, config)
    parts = split(store, config, val_store)
    return Material(
        corpus.name, parts, tokenizer, store.text_sha256, tokenizer.count_bytes(parts.val.ids[1:]), corpus.notes
    )


@dataclass
class Trial:
    """The result of one training.

    `val_loss` is the loss after the last step on the whole validation split, not the lowest of several: that would
    favour models that are evaluated more often.

    Attributes:
        parameters: number of the model's parameters.
        steps: optimizer steps.
        tokens: targets trained on.
        seconds: training time without evaluations.
        val_loss: nats per token after the last step.
        val_bpb: the same in bits per byte.
        curve: (step, seconds, nats per token) of single training batches, about a hundred.
        evaluations: (step, seconds, nats per token) on the whole validation split.
    """

    parameters: int
    steps: int
    tokens: int
    seconds: float
    val_loss: float
    val_bpb: float | None
    curve: list[tuple[int, float, float]] = field(default_factory=list)
    evaluations: list[tuple[int, float, float]] = field(default_factory=list)


def run_trial(config: RunConfig, material: Material, *, callbacks: Sequence[Callback] = ()) -> tuple[Trial, Bundle]:
    """Train a new model; nothing is written.

    Args:
        config: all settings; the vocabulary's size is taken from the material. `eval_every` adds evaluations between
            the first and the last.
        material: the text.
        callbacks: called at every step; `Request.STOP` ends the training early.

    Raises:
        ConfigError: the model would need pairs.
        DivergedError: the training loss, or the last validation loss, is no longer a number.
        InputError: the validation split has no token to predict.
    """
    if task_of(config.model).pairs:
        raise ConfigError(
            "studies read running text, not pairs",
            where="architecture=encoder-decoder",
            cure="use `gptloom train` for pairs",
        )
    config = resolve(config, {"model": {"vocab_size": material.tokenizer.vocab_size}}, where="the tokenizer")
    device, parts, tokenizer = pick_device(config.device), material.parts, material.tokenizer
    task = task_of(config.model)  # it depends on the vocabulary's size
    torch.manual_seed(config.seed)
    bundle = Bundle(build_model(config.model).to(device), tokenizer)
    train, model = config.train, bundle.model
    batches = task.training_batches(config, parts.train, tokenizer)
    horizon = make_horizon(train, batches.steps_per_epoch)
    objective, val_bytes = Objective(model), task.predicted_bytes(parts.val, tokenizer)

    def score() -> Score:
        windows = task.evaluation_batches(parts.val, tokenizer, train.eval_batch_size)
        return evaluate(objective, windows, device=device, byte_count=val_bytes)

    record = _Record()
    trainer = setup(
        config, model=model, batches=batches, horizon=horizon, evaluate=score, callbacks=[record, *callbacks]
    )
    model.train()
    with threads(thread_count(config)):
        per_step = trainer.rehearse()
        if horizon.seconds is not None:
            horizon.plan(0, 0.0, per_step)
        trainer.fit()
    model.eval()
    return record.trial(bundle, trainer.progress), bundle


class _Record(Callback):
    """Records the curves. Evaluation time does not count as training time."""

    def __init__(self) -> None:
        self.paused = 0.0
        self.mark = time.perf_counter()
        self.curve: list[tuple[int, float, float]] = []
        self.evaluations: list[tuple[int, float, float]] = []
        self.last: Score | None = None

    def after_step(self, view: View) -> Request:
        if view.logging and view.loss is not None:
            self.curve.append((view.step, view.seconds - self.paused, view.loss))
        self.mark = time.perf_counter()
        return Request.NOTHING

    def after_evaluation(self, view: View, score: Score) -> None:
        if math.isfinite(score.loss):
            self.evaluations.append((view.step, max(0.0, view.seconds - self.paused), score.loss))
        if view.step:
            self.paused += time.perf_counter() - self.mark
        self.last = score

    def trial(self, bundle: Bundle, progress: Progress) -> Trial:
        assert self.last is not None, "the trainer evaluates after the last step"
        if not self.last.tokens:
            cure = "give a longer text, or change --data.val-fraction"
            raise InputError("has no token to predict", where="the validation split", cure=cure)
        if self.last.is_broken:
            what = f"the validation loss is {self.last.loss}"
            raise DivergedError(what, where=f"step {progress.step}", cure="try a tenth of --train.learning-rate")
        return Trial(
            parameters=bundle.model.parameter_count(),
            steps=progress.step,
            tokens=progress.tokens,
            seconds=self.evaluations[-1][1],
            val_loss=self.last.loss,
            val_bpb=self.last.bpb,
            curve=self.curve,
            evaluations=self.evaluations,
        )


RESERVE = 0.9
"""Fraction of the time that is planned; the rest is a reserve."""

_REHEARSED = 6


@dataclass(frozen=True)
class Pace:
    """Training time of one lesson.

    Attributes:
        per_token: seconds of training per token.
        fixed: seconds that do not depend on the budget: building the model, evaluating it twice, writing a sample.
    """

    per_token: float
    fixed: float

    def seconds(self, tokens: int) -> float:
        """Total time of a training on this many tokens."""
        return self.fixed + self.per_token * tokens


class _Clock(Callback):
    """Measures the time between steps, and of an evaluation."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.started = self.evaluated = 0.0

    def on_start(self, view: View) -> None:
        self.started = time.perf_counter()

    def after_evaluation(self, view: View, score: Score) -> None:
        if view.step == 0:
            self.evaluated = time.perf_counter() - self.started
            self.steps.append(time.perf_counter())

    def after_step(self, view: View) -> Request:
        self.steps.append(time.perf_counter())
        return Request.NOTHING


def rehearse(config: RunConfig, material: Material) -> Pace:
    """Measure the time of a few steps, and of an evaluation on a few windows."""
    block, rows = config.model.block_size, config.train.eval_batch_size
    count = min(len(material.parts.val), 2 * rows * block + 1)
    few = Tokens(material.parts.val.ids[:count], np.zeros(1, dtype=np.int64))
    short: Mapping[str, Any] = {
        "train": {"steps": _REHEARSED, "minutes": None, "epochs": None, "patience": None, "eval_every": _REHEARSED}
    }
    clock, began = _Clock(), time.perf_counter()
    run_trial(
        resolve(config, short, where="rehearsal"),
        replace(material, parts=Split(material.parts.train, few)),
        callbacks=[clock],
    )
    whole = time.perf_counter() - began
    per_step = float(np.median(np.diff(clock.steps)[1:]))
    scale = len(material.parts.val) / count
    return Pace(per_step / (config.train.batch_size * block), whole + 2 * clock.evaluated * scale)


def affordable_tokens(paces: Mapping[str, Pace], seconds: float, most: int, least: int) -> int:
    """The tokens per lesson, `least` to `most`, with which all lessons can be trained once in `seconds`."""
    per_token = sum(pace.per_token for pace in paces.values())
    fixed = sum(pace.fixed for pace in paces.values())
    fits = (RESERVE * seconds - fixed) / max(per_token, 1e-12)
    return int(min(most, max(least, fits)))
