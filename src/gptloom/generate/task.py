"""The loss of a model on fixed windows. Nothing is drawn, so evaluating never changes what training does.

What each kind of model learns from and is measured on: windows of text, windows with hidden tokens, or pairs.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gptloom.config.model import ModelConfig
from gptloom.config.run import RunConfig
from gptloom.data.batches import Batches, MaskedBatches, evaluation_windows, masked_windows
from gptloom.data.pair_batches import PairBatches, check_lengths, pair_texts, pair_windows, split_pairs
from gptloom.data.tokenizers import Tokenizer
from gptloom.data.tokens import Split, Tokens, TokenStore, split
from gptloom.errors import InputError
from gptloom.generate.seq2seq import exact_matches
from gptloom.model.base import LanguageModel, evaluating
from gptloom.model.transformer import EncoderDecoder


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
        """Nats per token."""
        return self.nats / max(1, self.tokens)

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
    """Sum the objective over batches, with dropout off; `byte_count` is passed on into the score."""
    nats, tokens = 0.0, 0
    with evaluating(objective):
        for batch in batches:
            summed, count = objective(*(part.to(device) for part in batch))
            nats += float(summed)
            tokens += int(count)
    return Score(nats, tokens, byte_count)


EVALUATION_MASK_FRACTION = 0.15
"""Always this share is hidden when an encoder is measured, however it was trained, so that losses compare."""


def reads_pairs(config: ModelConfig) -> bool:
    """Whether it learns from sources and targets, not from running text."""
    return config.architecture == "encoder-decoder"


def cut(config: RunConfig, store: TokenStore, val_store: TokenStore | None = None) -> Split:
    """What trains and what validates.

    Raises:
        InputError: a part would be too short, or a pair is longer than block_size.
    """
    if not reads_pairs(config.model):
        return split(store, config.data, val_store)
    parts = split_pairs(store, config.data, val_store)
    for part in (parts.train, parts.val):
        check_lengths(part, config.model.block_size)
    return parts


def training_batches(
    config: RunConfig, tokens: Tokens, tokenizer: Tokenizer, rank: int = 0, world: int = 1
) -> Batches | MaskedBatches | PairBatches:
    """Batches by step for this kind of model: what rank `rank` of `world` sees of them.

    Raises:
        InputError: there is nothing to train on.
    """
    model, batch_size, seed = config.model, config.train.batch_size, config.seed
    if reads_pairs(model):
        return PairBatches(
            tokens, batch_size=batch_size, seed=seed, end_of_text=end_of_text(tokenizer), rank=rank, world=world
        )
    batches = Batches(
        tokens,
        block_size=model.block_size,
        batch_size=batch_size,
        seed=seed,
        sampling=config.data.sampling,
        rank=rank,
        world=world,
    )
    if model.architecture == "encoder":
        return MaskedBatches(
            batches,
            mask=model.vocab_size,
            fraction=config.data.mask_fraction,
            seed=seed,
            first=rank * batch_size // world,
        )
    return batches


def evaluation_batches(
    config: ModelConfig, tokens: Tokens, tokenizer: Tokenizer, batch_size: int
) -> Iterator[tuple[Tensor, ...]]:
    """Everything there is to predict in `tokens`, once, in a fixed order; of an encoder's, a fixed share."""
    if reads_pairs(config):
        return pair_windows(tokens, batch_size, end_of_text(tokenizer))
    if config.architecture == "encoder":
        return masked_windows(
            tokens, config.block_size, batch_size, mask=config.vocab_size, fraction=EVALUATION_MASK_FRACTION
        )
    return evaluation_windows(tokens, config.block_size, batch_size)


def predicted_bytes(config: ModelConfig, tokens: Tokens, tokenizer: Tokenizer) -> int:
    """UTF-8 bytes that the predicted tokens stand for; 0 where bits per byte would say nothing about a text as a whole."""
    return 0 if config.architecture in ("encoder", "encoder-decoder") else tokenizer.count_bytes(tokens.ids[1:])


def exact_match(model: LanguageModel, tokens: Tokens, tokenizer: Tokenizer) -> float | None:
    """Share of the pairs whose target an encoder-decoder writes to the letter, greedily; None for other models."""
    if not isinstance(model, EncoderDecoder):
        return None
    pairs = pair_texts(tokens)
    return exact_matches(model, pairs, end_of_text(tokenizer)) / len(pairs)


def end_of_text(tokenizer: Tokenizer) -> int:
    """The id that opens and closes a translation; InputError where the tokenizer has none."""
    if tokenizer.end_of_text is None:
        raise InputError(
            "has no end of text, with which an encoder-decoder begins and ends",
            where="the tokenizer",
            cure="use --tokenizer char or bpe:SIZE",
        )
    return tokenizer.end_of_text
