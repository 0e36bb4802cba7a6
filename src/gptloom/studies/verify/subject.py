"""The subject of the checks: a configuration, a model with its tokenizer, and a text; small enough for a minute."""

import copy
import math
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import count

import torch
from torch import Tensor, nn

from gptloom.bundle import Bundle
from gptloom.config.model import ModelConfig
from gptloom.config.run import IGNORE_INDEX, RunConfig
from gptloom.data.tokens import Split, Tokens
from gptloom.devices import derive
from gptloom.generate.task import Task, task_of
from gptloom.model.base import LanguageModel
from gptloom.model.build import build_model
from gptloom.studies.verify.tolerance import RELU_SAFETY, SAFETY, allowance, in_double, largest, norms

WORK = 2**29
"""Approximate number of multiply-adds in one forward pass; it limits the batch size of large models."""

ROWS, EVALUATED = 4, 2_000

LATER = 1_000
"""Offset of the step whose batch replaces a batch without any masked token."""

Batch = tuple[Tensor, ...]


@dataclass
class Subject:
    """A model with its settings, tokenizer and text, and everything the checks derive from them.

    Attributes:
        name: the name of the run or recipe.
        config: all settings, including the vocabulary size.
        bundle: the model on its device, and the tokenizer.
        trained: whether the weights come from a run or a bundle. The weights of a new model are not tested, for zeros
            hide errors.
        parts: the tokens of the training and validation parts.
        raw: the beginning of the raw text, if it is known and the tokenizer must reproduce it; else empty.
        excerpt: a part of the text for short trainings: plain text, or lines of SOURCE<tab>TARGET.
        seed: the seed of all random numbers.
        notes: messages for the user.
    """

    name: str
    config: RunConfig
    bundle: Bundle
    trained: bool
    parts: Split
    raw: str
    excerpt: str
    seed: int
    notes: list[str] = field(default_factory=list)

    @property
    def model(self) -> ModelConfig:
        """The model's settings."""
        return self.config.model

    @property
    def task(self) -> Task:
        """The task of this kind of model."""
        return task_of(self.model)

    @property
    def device(self) -> torch.device:
        """The model's device."""
        return self.bundle.model.device

    @property
    def causal(self) -> bool:
        """Whether a position must not see later tokens."""
        return self.task.causal

    @cached_property
    def drawn(self) -> LanguageModel:
        """A model of this shape on the CPU with random weights far from 0 and 1, so that every part has an effect."""
        return drawn_model(self.model, derive(self.seed, "verify", "weights"))

    @cached_property
    def models(self) -> list[LanguageModel]:
        """The models to test, on the CPU in float32: the trained model, if there is one, and the random model."""
        own = [copy.deepcopy(self.bundle.model).cpu()] if self.trained else []
        return [*own, self.drawn]

    def placed(self, model: LanguageModel) -> LanguageModel:
        """A copy of a model on the subject's device; on a CPU, the model itself."""
        return model if self.device.type == "cpu" else copy.deepcopy(model).to(self.device)

    @cached_property
    def exact(self) -> LanguageModel:
        """The random model in float64."""
        return in_double_precision(self.drawn)

    @cached_property
    def rows(self) -> int:
        """Sequences per batch; an even number, so that two ranks can share it."""
        return ROWS if self._tokens // self.time >= ROWS else 2

    @cached_property
    def time(self) -> int:
        """Tokens per sequence."""
        return min(self.model.block_size, max(16, self._tokens // 2))

    @property
    def _tokens(self) -> int:
        return WORK // max(1, self.bundle.model.parameter_count())

    def batch(self, step: int = 0, *, rows: int | None = None, time: int | None = None) -> Batch:
        """A training batch on the CPU with at least one target.

        Args:
            step: the training step whose batch is read.
            rows: the number of sequences (default: `rows`).
            time: the number of tokens per sequence (default: `time`).

        Returns:
            (inputs, targets) or (sources, inputs, targets); ids (b, t) each.
        """
        train = self.config.train.model_copy(update={"batch_size": rows or self.rows, "micro_batch_size": None})
        model = self.model.model_copy(update={"block_size": time or self.time})
        config = self.config.model_copy(update={"train": train, "model": model, "seed": self.seed})
        batches = task_of(model).training_batches(config, self.parts.train, self.bundle.tokenizer)
        tries = (tuple(batches.batch(step + LATER * number)) for number in count())
        return next(batch for batch in tries if _has_targets(batch))

    def ragged_batch(self, step: int = 0, *, time: int | None = None) -> Batch:
        """A training batch whose rows have different numbers of targets; sources and an encoder's inputs are padded."""
        return next(
            batch
            for batch in (self._cut_short(self.batch(step + LATER * number, time=time)) for number in count())
            if _has_targets(batch)
        )

    def _cut_short(self, batch: Batch) -> Batch:
        *inputs, targets = (part.clone() for part in batch)
        padded = [targets] if self.task.continues else [targets, inputs[0]]
        for part in padded:
            for row in range(1, len(part)):
                end = max(1, part.shape[1] * (len(part) - row) // (2 * len(part)))
                part[row, end:] = IGNORE_INDEX  # padding is -1, too
        return (*inputs, targets)

    @cached_property
    def eval_tokens(self) -> Tokens:
        """The first tokens of the validation part, about `EVALUATED`."""
        return self.task.first_tokens(self.parts.val, EVALUATED)

    @property
    def relu_tolerance(self) -> float:
        """The number of roundings that the tolerances of gradients allow; see `RELU_SAFETY`."""
        return RELU_SAFETY if self.model.mlp == "relu" and not self.model.is_recurrent else SAFETY

    @cached_property
    def logit_tolerance(self) -> float:
        """The tolerance of float32 logits, relative to the largest logit; the maximum over `models`."""
        *inputs, _ = self.ragged_batch()
        found = []
        for exact in map(in_double_precision, self.models):
            found.append(allowance(exact, partial(lambda model: [logits(model, *inputs)], exact), largest))
        return max(found)

    @cached_property
    def slope_tolerance(self) -> float:
        """The tolerance of the random model's float32 gradients, relative to the norm of the whole gradient."""
        batch = self.ragged_batch()
        return allowance(
            self.exact, lambda: list(gradients(self.exact, batch).values()), norms, roundings=self.relu_tolerance
        )

    @cached_property
    def smooth_tolerance(self) -> float:
        """The same without the allowance for ReLU's kinks."""
        batch = self.ragged_batch()
        return allowance(self.exact, lambda: list(gradients(self.exact, batch).values()), norms)

    @property
    def double_tolerance(self) -> float:
        """The tolerance of its float64 gradients; their rounding does not change the sign of an activation."""
        return in_double(self.smooth_tolerance)


def _has_targets(batch: Batch) -> bool:
    return bool((batch[-1] != IGNORE_INDEX).any())


def drawn_model(config: ModelConfig, seed: int) -> LanguageModel:
    """Build a model with random weights: matrices of unit gain, unit embeddings, gains near 1, biases near 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(config)
        tables = {id(m.weight): m for m in model.modules() if isinstance(m, nn.Embedding)}
        gains = {id(m.weight) for m in model.modules() if isinstance(m, nn.LayerNorm | nn.RMSNorm)}
        with torch.no_grad():
            for name, p in model.named_parameters():
                size = 0.3 if p.ndim < 2 else p.shape[-1] ** -0.5
                if id(p) in tables and config.head != "tied":
                    size = 1.0
                if name.endswith(("mixer.out.weight", "cross.out.weight", "mlp.down.weight")):
                    # Else the residual stream of a model without norms would grow with depth.
                    size /= math.sqrt(2 * config.n_layer)
                p.copy_(size * torch.randn(p.shape) + float(id(p) in gains))
    return model.eval()


def in_double_precision(model: LanguageModel) -> LanguageModel:
    """A copy of a model on the CPU in float64."""
    return copy.deepcopy(model).cpu().double()


def logits(model: LanguageModel, *inputs: Tensor) -> Tensor:
    """Logits (b, t, vocab) of inputs (ids,) or (sources, ids), without gradients; ids have the shape (b, t)."""
    with torch.no_grad():
        here = [ids.to(model.device) for ids in inputs]
        found: Tensor = model(*here)
        return found


def _logit_list(model: LanguageModel, *inputs: Tensor) -> list[Tensor]:
    return [logits(model, *inputs)]


def gradients(model: LanguageModel, batch: Batch, smoothing: float = 0.0) -> dict[str, Tensor]:
    """Gradients of the mean loss over a batch by name, without gptloom's objective, trainer or optimizer."""
    model.zero_grad(set_to_none=True)
    mean_loss(model, batch, smoothing).backward()  # type: ignore[no-untyped-call]
    found = {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return found


def mean_loss(model: LanguageModel, batch: Batch, smoothing: float = 0.0) -> Tensor:
    """The mean of -ln p over the targets, by its definition; `smoothing` mixes in the mean over all tokens."""
    *inputs, targets = (part.to(model.device) for part in batch)
    scores: Tensor = model(*inputs)
    counted = targets != IGNORE_INDEX
    scores = scores[counted]
    logprobs = scores - torch.logsumexp(scores, -1, keepdim=True)
    hits = logprobs.gather(-1, targets[counted][:, None])[:, 0]
    return -((1.0 - smoothing) * hits + smoothing * logprobs.mean(-1)).mean()
