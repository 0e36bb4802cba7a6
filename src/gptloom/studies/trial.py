"""One training without a run folder: what every study repeats by the dozen."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from gptloom.bundle import Bundle
from gptloom.config import DataConfig, RunConfig
from gptloom.data.sources import open_corpus
from gptloom.data.tokenizers import Tokenizer, make_tokenizer
from gptloom.data.tokens import Split, prepare, split
from gptloom.errors import ConfigError
from gptloom.inference.evaluation import Score, evaluate
from gptloom.model.build import build_model
from gptloom.model.objective import Objective
from gptloom.runtime import autocast, pick_device, pick_precision, thread_count, threads
from gptloom.settings import merge, parse
from gptloom.tasks import evaluation_batches, predicted_bytes, reads_pairs, training_batches
from gptloom.training.callbacks import Callback, Request, View
from gptloom.training.job import Job, Progress
from gptloom.training.optim import make_optimizer
from gptloom.training.schedule import make_horizon
from gptloom.training.trainer import Trainer


@dataclass(frozen=True)
class Material:
    """A text made ready once, for many trainings.

    Attributes:
        name: a short word for it, fit to name a folder.
        parts: what trains and what validates.
        tokenizer: made for it.
        text_sha256: hash of the text.
        val_bytes: UTF-8 bytes of the validation targets.
        notes: what the user should know about how it was read.
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
    return Material(corpus.name, parts, tokenizer, store.text_sha256, tokenizer.count_bytes(parts.val.ids[1:]), corpus.notes)


@dataclass
class Trial:
    """What one training came to.

    `val_loss` is that of the last step on the whole validation split, not the best of several: choosing the best would favour
    whatever is evaluated more often.

    Attributes:
        parameters: of the model.
        steps: optimizer steps.
        tokens: targets trained on.
        seconds: of training, without evaluation.
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
    """Train from the beginning; nothing is written.

    Args:
        config: all settings; the vocabulary's size is taken from the material. `eval_every` decides about evaluations between
            the first and the last.
        material: the text.
        callbacks: shown every step; one that asks for `Request.STOP` ends the training early.

    Raises:
        ConfigError: the model would need pairs.
        DivergedError: the loss is no longer a number.
    """
    if reads_pairs(config.model):
        raise ConfigError("studies read running text, not pairs", where="architecture=encoder-decoder", cure="use `gptloom train` for pairs")
    config = parse(RunConfig, merge(config.model_dump(), {"model": {"vocab_size": material.tokenizer.vocab_size}}), where="the tokenizer")
    device = pick_device(config.device)
    torch.manual_seed(config.seed)
    bundle = Bundle(build_model(config.model).to(device), material.tokenizer)
    train, model = config.train, config.model
    batches = training_batches(config, material.parts.train, material.tokenizer)
    horizon = make_horizon(train, batches.tokens_per_epoch, train.batch_size * model.block_size)
    objective = Objective(bundle.model, train.label_smoothing)
    val_bytes = predicted_bytes(model, material.parts.val, material.tokenizer)

    def score() -> Score:
        windows = evaluation_batches(model, material.parts.val, material.tokenizer, train.eval_batch_size)
        return evaluate(objective, windows, device=device, byte_count=val_bytes)

    job = Job(
        objective=objective,
        optimizer=make_optimizer(bundle.model, train),
        source=batches,
        evaluate=score,
        autocast=partial(autocast, device, pick_precision(train.precision, device)),
        device=device,
        seed=config.seed,
    )
    record = _Record()
    trainer = Trainer(job, train, horizon, Progress(), [record, *callbacks])
    bundle.model.train()
    with threads(thread_count(config)):
        per_step = trainer.rehearse()
        if horizon.seconds is not None:
            horizon.plan(0, 0.0, per_step)
        trainer.fit()
    bundle.model.eval()
    return record.trial(bundle, trainer.progress), bundle


class _Record(Callback):
    """Keeps what a picture needs. Evaluating takes time too, but none that counts as training."""

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
        self.evaluations.append((view.step, max(0.0, view.seconds - self.paused), score.loss))
        if view.step:
            self.paused += time.perf_counter() - self.mark
        self.last = score

    def trial(self, bundle: Bundle, progress: Progress) -> Trial:
        assert self.last is not None, "the trainer evaluates after the last step"
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
