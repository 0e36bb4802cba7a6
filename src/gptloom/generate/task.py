"""Tasks: the training data, the evaluation and the prompts of each kind of model.

Decoders and recurrent networks read windows of text (`CausalTask`), encoders read windows with masked tokens
(`MaskedTask`), and encoder-decoders read pairs of source and target (`TranslationTask`).
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from gptloom.config.base import shown
from gptloom.config.model import ModelConfig
from gptloom.config.run import DataConfig, OnUnknown, RunConfig, SampleConfig
from gptloom.data.batches import Batches, MaskedBatches, evaluation_windows, masked_windows
from gptloom.data.pair_batches import PairBatches, check_lengths, pair_texts, pair_windows, split_pairs
from gptloom.data.tokenizers import Tokenizer
from gptloom.data.tokenizers.base import AnyIds, Ids
from gptloom.data.tokens import Split, Tokens, TokenStore, split
from gptloom.errors import InputError
from gptloom.generate.seq2seq import condition, exact_matches
from gptloom.model.base import LanguageModel, evaluating
from gptloom.model.transformer import EncoderDecoder

MASK = "[MASK]"
"""Replaces a token in a text that an encoder predicts."""

EVALUATION_MASK_FRACTION = 0.15
"""Fraction of tokens that evaluations mask. It does not depend on `mask_fraction`, so that losses are comparable."""


@dataclass(frozen=True)
class Score:
    """A summed loss and what it was summed over.

    Attributes:
        nats: summed cross-entropy.
        tokens: predicted tokens.
        bytes: UTF-8 bytes that those tokens stand for.
    """

    nats: float
    tokens: int
    bytes: int = 0

    @property
    def loss(self) -> float:
        """Nats per token; not a number if no token was predicted."""
        return self.nats / self.tokens if self.tokens else math.nan

    @property
    def is_broken(self) -> bool:
        """Whether the model's loss is not finite, so that its weights are of no use."""
        return self.tokens > 0 and not math.isfinite(self.loss)

    @property
    def perplexity(self) -> float:
        """exp(loss): the number of equally likely tokens that would be as hard to guess."""
        return math.exp(min(self.loss, 700.0))

    @property
    def bpb(self) -> float | None:
        """Bits per byte, which compares across tokenizers; None where the tokens stand for no bytes."""
        return self.nats / math.log(2) / self.bytes if self.bytes else None


@torch.no_grad()
def evaluate(
    objective: nn.Module, batches: Iterable[tuple[Tensor, ...]], *, device: torch.device, byte_count: int = 0
) -> Score:
    """Sum the objective over batches with dropout off. Draws no random numbers, so training is not affected.

    Args:
        objective: maps a batch to (summed nats, count).
        batches: tuples of ids, the targets last.
        device: where the batches are moved.
        byte_count: the score's `bytes`.
    """
    nats, tokens = 0.0, 0
    with evaluating(objective):
        for batch in batches:
            summed, count = objective(*(part.to(device) for part in batch))
            nats += float(summed)
            tokens += int(count)
    return Score(nats, tokens, byte_count)


class Start(NamedTuple):
    """How sampling starts after a prompt.

    Attributes:
        model: the model to sample from, for one or more rows.
        ids: the ids of each row so far; never empty.
        config: the settings, limited to what the model can do.
    """

    model: LanguageModel
    ids: list[int]
    config: SampleConfig


class Task:
    """One kind of model. `task_of` returns the task of a configuration.

    Args:
        config: the model's configuration.

    Attributes:
        pairs: whether it reads pairs of source and target instead of running text.
        causal: whether a position must not see later tokens, so that the model can write text.
        continues: whether what it writes continues the prompt.
    """

    pairs = False
    causal = True
    continues = True

    def __init__(self, config: ModelConfig) -> None:
        """Keep the configuration."""
        self.config = config

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Check that the tokenizer has the special tokens that the task needs.

        Raises:
            InputError: it has not.
        """

    def split(self, store: TokenStore, config: DataConfig, val_store: TokenStore | None = None) -> Split:
        """Split a tokenized text into training and validation tokens.

        Raises:
            InputError: a part would be too short, or a pair is longer than block_size.
        """
        return split(store, config, val_store)

    def training_batches(
        self, config: RunConfig, tokens: Tokens, tokenizer: Tokenizer, *, rank: int = 0, world: int = 1
    ) -> Batches | MaskedBatches | PairBatches:
        """Return the batches by step of rank `rank` of `world`.

        Raises:
            InputError: there is nothing to train on.
        """
        return Batches(
            tokens,
            block_size=self.config.block_size,
            batch_size=config.train.batch_size,
            seed=config.seed,
            sampling=config.data.sampling,
            rank=rank,
            world=world,
        )

    def evaluation_batches(self, tokens: Tokens, tokenizer: Tokenizer, batch_size: int) -> Iterator[tuple[Tensor, ...]]:
        """Yield every token that can be predicted exactly once, in a fixed order; of an encoder's, a fixed fraction."""
        return evaluation_windows(tokens, self.config.block_size, batch_size)

    def predicted_bytes(self, tokens: Tokens, tokenizer: Tokenizer) -> int:
        """UTF-8 bytes of the predicted tokens; 0 where bits per byte would not describe the text as a whole."""
        return tokenizer.count_bytes(tokens.ids[1:])

    def exact_match(self, model: LanguageModel, tokens: Tokens, tokenizer: Tokenizer) -> float | None:
        """The fraction of pairs whose target is written exactly, by greedy search; None for other models."""
        return None

    def first_tokens(self, tokens: Tokens, most: int) -> Tokens:
        """The first `most` tokens of a text."""
        starts = tokens.document_starts
        return Tokens(np.array(tokens.ids[:most]), starts[starts < most])

    def start(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        prompt: str | AnyIds,
        rows: int,
        config: SampleConfig,
        unknown: OnUnknown,
    ) -> Start:
        """Prepare to sample `rows` texts after a prompt.

        Args:
            model: the model, whose configuration is the task's.
            tokenizer: its tokenizer.
            prompt: a text or ids. After an empty one, the model starts with an end of text, a new line, or its first
                token.
            rows: the number of texts.
            config: how tokens are chosen.
            unknown: what happens to characters of the prompt that the tokenizer does not know.

        Raises:
            InputError: the prompt cannot be read, or the model cannot write text.
        """
        return Start(model, prompt_ids(tokenizer, prompt, unknown), config)


class CausalTask(Task):
    """Predict the next token of a text: decoders and recurrent networks."""


class MaskedTask(Task):
    """Predict masked tokens from both sides: encoders (Devlin et al. 2019, section 3.1)."""

    causal = False
    continues = False

    def training_batches(
        self, config: RunConfig, tokens: Tokens, tokenizer: Tokenizer, *, rank: int = 0, world: int = 1
    ) -> MaskedBatches:
        """See `Task`."""
        batches = super().training_batches(config, tokens, tokenizer, rank=rank, world=world)
        assert isinstance(batches, Batches)
        return MaskedBatches(
            batches,
            mask=self.config.vocab_size,
            fraction=config.data.mask_fraction,
            seed=config.seed,
            first=rank * config.train.batch_size // world,
        )

    def evaluation_batches(self, tokens: Tokens, tokenizer: Tokenizer, batch_size: int) -> Iterator[tuple[Tensor, ...]]:
        """See `Task`."""
        config, fraction = self.config, EVALUATION_MASK_FRACTION
        return masked_windows(tokens, config.block_size, batch_size, mask=config.vocab_size, fraction=fraction)

    def predicted_bytes(self, tokens: Tokens, tokenizer: Tokenizer) -> int:
        """See `Task`."""
        return 0

    def start(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        prompt: str | AnyIds,
        rows: int,
        config: SampleConfig,
        unknown: OnUnknown,
    ) -> Start:
        """Raises InputError: an encoder does not write text."""
        raise InputError(
            "an encoder sees both sides of a token, so it cannot continue a text",
            where="the model",
            cure=f"let it fill in {MASK}: Bundle.fill",
        )


class TranslationTask(Task):
    """Predict a target from a source: encoder-decoders."""

    pairs = True
    continues = False

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """See `Task`."""
        end_of_text(tokenizer)

    def split(self, store: TokenStore, config: DataConfig, val_store: TokenStore | None = None) -> Split:
        """See `Task`."""
        parts = split_pairs(store, config, val_store)
        for part in (parts.train, parts.val):
            check_lengths(part, self.config.block_size)
        return parts

    def training_batches(
        self, config: RunConfig, tokens: Tokens, tokenizer: Tokenizer, *, rank: int = 0, world: int = 1
    ) -> PairBatches:
        """See `Task`."""
        size, end = config.train.batch_size, end_of_text(tokenizer)
        return PairBatches(tokens, batch_size=size, seed=config.seed, end_of_text=end, rank=rank, world=world)

    def evaluation_batches(self, tokens: Tokens, tokenizer: Tokenizer, batch_size: int) -> Iterator[tuple[Tensor, ...]]:
        """See `Task`."""
        return pair_windows(tokens, batch_size, end_of_text(tokenizer))

    def predicted_bytes(self, tokens: Tokens, tokenizer: Tokenizer) -> int:
        """See `Task`."""
        return 0

    def exact_match(self, model: LanguageModel, tokens: Tokens, tokenizer: Tokenizer) -> float | None:
        """See `Task`."""
        assert isinstance(model, EncoderDecoder)
        pairs = pair_texts(tokens)
        return exact_matches(model, pairs, end_of_text(tokenizer)) / len(pairs)

    def first_tokens(self, tokens: Tokens, most: int) -> Tokens:
        """As many whole pairs as fit into `most` tokens, but at least one."""
        ends = [*tokens.document_starts[2::2].tolist(), len(tokens)]
        return super().first_tokens(tokens, max([ends[0], *(end for end in ends if end <= most)]))

    def start(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        prompt: str | AnyIds,
        rows: int,
        config: SampleConfig,
        unknown: OnUnknown,
    ) -> Start:
        """Read the prompt as the source; the target starts with an end of text and fits into the context window.

        A translation is greedy, as `exact_match` is, unless a setting asks for draws.
        """
        assert isinstance(model, EncoderDecoder)
        source: list[int] = text_ids(tokenizer, prompt, unknown).tolist()
        size = self.config.block_size
        if not 0 < len(source) <= size:
            what = f"an encoder-decoder needs a source of 1 to {size} tokens, not {len(source)}"
            raise InputError(what, where="the prompt", cure="give the text to translate as the prompt")
        limits: dict[str, float] = {"tokens": min(config.tokens, max(1, size - 1))}
        if config.samples == 1 and not config.model_fields_set & {"temperature", "top_k", "top_p", "min_p"}:
            limits["temperature"] = 0.0
        config = config.model_copy(update=limits)
        return Start(condition(model, [source] * rows), [end_of_text(tokenizer)], config)


TASKS: dict[str, type[Task]] = {"encoder": MaskedTask, "encoder-decoder": TranslationTask}
"""The tasks by architecture; all others are causal."""


def task_of(config: ModelConfig) -> Task:
    """Return the task of a model's configuration."""
    return TASKS.get(config.architecture, CausalTask)(config)


def text_ids(tokenizer: Tokenizer, text: str | AnyIds, unknown: OnUnknown = "error") -> Ids:
    """The ids of a text; ids in place of a text are checked.

    Raises:
        InputError: the text has a character that the tokenizer does not know, and `unknown` is error; or it is neither
            a text nor a list or array of the tokenizer's ids.
    """
    if isinstance(text, str):
        return tokenizer.encode(text, unknown)
    try:
        ids = np.asarray(text)
    except (TypeError, ValueError):  # a list of lists of different lengths, or a tensor on an accelerator
        ids = np.array(None)
    known = ids.ndim == 1 and (not ids.size or np.issubdtype(ids.dtype, np.integer))
    if not known or (ids.size and not 0 <= ids.min() <= ids.max() < tokenizer.vocab_size):
        what = f"{shown(text)} is neither a text nor a list of token ids from 0 to {tokenizer.vocab_size - 1}"
        raise InputError(what, where="the prompt", cure="give a text in quotes")
    return ids.astype(tokenizer.dtype)


def prompt_ids(tokenizer: Tokenizer, prompt: str | AnyIds, unknown: OnUnknown = "error") -> list[int]:
    """The ids of a prompt. Those of an empty one are an end of text, a new line, or the first token: never none.

    Raises:
        InputError: as `text_ids`.
    """
    ids: list[int] = text_ids(tokenizer, prompt, unknown).tolist()
    if ids:
        return ids
    if tokenizer.end_of_text is not None:
        return [tokenizer.end_of_text]
    return tokenizer.encode("\n", "skip").tolist()[:1] or [0]


def end_of_text(tokenizer: Tokenizer) -> int:
    """The id that starts and ends a translation.

    Raises:
        InputError: the tokenizer has none.
    """
    if tokenizer.end_of_text is None:
        raise InputError(
            "has no end of text, with which an encoder-decoder begins and ends",
            where="the tokenizer",
            cure="use --tokenizer char or bpe:SIZE",
        )
    return tokenizer.end_of_text
