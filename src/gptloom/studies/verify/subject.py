"""What is verified: a configuration, a model with its tokenizer, and a text; in sizes that a minute is enough for."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count

import numpy as np
import torch
from torch import Tensor, nn

from gptloom.bundle import Bundle
from gptloom.config.model import ModelConfig
from gptloom.config.run import IGNORE_INDEX, RunConfig
from gptloom.data.splits import Split, Tokens
from gptloom.devices import derive
from gptloom.generate.task import reads_pairs, training_batches
from gptloom.model.base import LanguageModel
from gptloom.model.build import build_model
from gptloom.model.transformer import EncoderDecoder
from gptloom.studies.verify.tolerance import KINKED, SAFETY, allowance, in_double, largest, norms

WORK = 2**29
"""Products of one number with one weight in a forward pass, about: what bounds the batches of larger models."""

ROWS, EVALUATED = 4, 2_000

LATER = 1_000
"""Steps to the batch that is taken instead of one in which an encoder happens to have nothing to fill in."""

Batch = tuple[Tensor, ...]


@dataclass
class Subject:
    """What the checks are about.

    Attributes:
        name: of the run, or of the recipe.
        config: all settings, the vocabulary's size included.
        bundle: the model, on its device, and the tokenizer.
        trained: whether the bundle's weights come from a run or a bundle; a fresh model's are not looked at, for zeros
            hide errors.
        parts: the tokens.
        raw: the beginning of the text as it was read, where it is known and the tokenizer must give it back; else
            empty.
        excerpt: some of the text, for a training of its own: as it is, or as lines of SOURCE<tab>TARGET.
        seed: of whatever is drawn.
        notes: what the user should know.
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
        """The model's shape."""
        return self.config.model

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.bundle.model.device

    @property
    def causal(self) -> bool:
        """Whether a token must not be seen before its turn."""
        return self.model.architecture != "encoder"

    @cached_property
    def drawn(self) -> LanguageModel:
        """A model of this shape on the CPU whose weights are all far from 0 and 1, so that every part of it counts."""
        return drawn_model(self.model, derive(self.seed, "verify", "weights"))

    @cached_property
    def models(self) -> list[LanguageModel]:
        """On the CPU, in float32: the run's own weights, where there are any, and weights that were drawn."""
        own = [copy.deepcopy(self.bundle.model).cpu()] if self.trained else []
        return [*own, self.drawn]

    def placed(self, model: LanguageModel) -> LanguageModel:
        """A model on the subject's device."""
        return model if self.device.type == "cpu" else copy.deepcopy(model).to(self.device)

    @cached_property
    def exact(self) -> LanguageModel:
        """The drawn model in float64."""
        return in_double_precision(self.drawn)

    @cached_property
    def rows(self) -> int:
        """Sequences of a batch; an even number, for two ranks."""
        return ROWS if self._tokens // self.time >= ROWS else 2

    @cached_property
    def time(self) -> int:
        """Tokens of a sequence."""
        return min(self.model.block_size, max(16, self._tokens // 2))

    @property
    def _tokens(self) -> int:
        return WORK // max(1, self.bundle.model.parameter_count())

    def batch(self, step: int = 0, *, rows: int | None = None, time: int | None = None) -> Batch:
        """A training batch of the run's own kind on the CPU: (inputs, targets) or (sources, inputs, targets), with at least one target."""
        train = self.config.train.model_copy(update={"batch_size": rows or self.rows, "micro_batch_size": None})
        model = self.model.model_copy(update={"block_size": time or self.time})
        config = self.config.model_copy(update={"train": train, "model": model, "seed": self.seed})
        batches = training_batches(config, self.parts.train, self.bundle.tokenizer)
        tries = (tuple(batches.batch(step + LATER * number)) for number in count())
        return next(batch for batch in tries if _has_targets(batch))

    def uneven(self, step: int = 0, *, time: int | None = None) -> Batch:
        """A training batch whose rows have very different numbers of targets, and whose sources, or an encoder's inputs, are padded."""
        return next(
            batch
            for batch in (self._cut_short(self.batch(step + LATER * number, time=time)) for number in count())
            if _has_targets(batch)
        )

    def _cut_short(self, batch: Batch) -> Batch:
        *inputs, targets = (part.clone() for part in batch)
        padded = [targets] if self.model.architecture not in ("encoder", "encoder-decoder") else [targets, inputs[0]]
        for part in padded:
            for row in range(1, len(part)):
                part[row, max(1, part.shape[1] * (len(part) - row) // (2 * len(part))) :] = (
                    IGNORE_INDEX  # padding is -1, too
                )
        return (*inputs, targets)

    @cached_property
    def few(self) -> Tokens:
        """A few thousand tokens to evaluate on: the beginning of the validation part."""
        return first_tokens(self.parts.val, EVALUATED, pairs=reads_pairs(self.model))

    @property
    def kinked(self) -> float:
        """Roundings that the tolerances of gradients allow for; see `KINKED`."""
        return KINKED if self.model.mlp == "relu" and not self.model.is_recurrent else SAFETY

    @cached_property
    def logit_tolerance(self) -> float:
        """Of float32 logits, relative to the largest: the greatest over `models`."""
        *inputs, _ = self.uneven()
        return max(
            allowance(exact, lambda e=exact: [logits(e, *inputs)], largest)
            for exact in map(in_double_precision, self.models)
        )  # type: ignore[misc]

    @cached_property
    def slope_tolerance(self) -> float:
        """Of the drawn model's float32 gradients, relative to the length of the whole gradient."""
        batch = self.uneven()
        return allowance(self.exact, lambda: list(gradients(self.exact, batch).values()), norms, roundings=self.kinked)

    @cached_property
    def smooth_tolerance(self) -> float:
        """The same where kinks need no allowance."""
        batch = self.uneven()
        return allowance(self.exact, lambda: list(gradients(self.exact, batch).values()), norms)

    @property
    def double_tolerance(self) -> float:
        """Of its float64 gradients, in which no activation changes its sign by rounding."""
        return in_double(self.smooth_tolerance)


def _has_targets(batch: Batch) -> bool:
    return bool((batch[-1] != IGNORE_INDEX).any())


def drawn_model(config: ModelConfig, seed: int) -> LanguageModel:
    """Weights of unit gain in every matrix, tables of unit size, gains about 1 and biases about 0."""
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
                    size /= math.sqrt(
                        2 * config.n_layer
                    )  # or the stream would grow with depth where nothing normalises it
                p.copy_(size * torch.randn(p.shape) + float(id(p) in gains))
    return model.eval()


def in_double_precision(model: LanguageModel) -> LanguageModel:
    """A copy on the CPU in float64."""
    return copy.deepcopy(model).cpu().double()


def logits(model: LanguageModel, *inputs: Tensor) -> Tensor:
    """Logits of (ids) or (sources, ids), without gradients."""
    with torch.no_grad():
        here = [ids.to(model.device) for ids in inputs]
        return model.translate(*here) if isinstance(model, EncoderDecoder) else model(*here)


def gradients(model: LanguageModel, batch: Batch, smoothing: float = 0.0) -> dict[str, Tensor]:
    """Gradients of the mean loss over a batch, in one pass and without gptloom's objective, trainer or optimizer."""
    model.zero_grad(set_to_none=True)
    mean_loss(model, batch, smoothing).backward()  # type: ignore[no-untyped-call]
    found = {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return found


def mean_loss(model: LanguageModel, batch: Batch, smoothing: float = 0.0) -> Tensor:
    """-ln p of each target that counts, by the definition, averaged; `smoothing` mixes in the mean over all tokens."""
    *inputs, targets = (part.to(model.device) for part in batch)
    scores = model.translate(*inputs) if isinstance(model, EncoderDecoder) else model(*inputs)
    counted = targets != IGNORE_INDEX
    scores = scores[counted]
    logprobs = scores - torch.logsumexp(scores, -1, keepdim=True)
    hits = logprobs.gather(-1, targets[counted][:, None])[:, 0]
    return -((1.0 - smoothing) * hits + smoothing * logprobs.mean(-1)).mean()


def first_tokens(tokens: Tokens, most: int, *, pairs: bool) -> Tokens:
    """The beginning of a text; of pairs, as many whole ones as fit."""
    starts = tokens.document_starts
    if pairs:
        ends: Sequence[int] = [*starts[2::2].tolist(), len(tokens)]
        most = max([ends[0], *(end for end in ends if end <= most)])
    return Tokens(np.array(tokens.ids[:most]), starts[starts < most])
