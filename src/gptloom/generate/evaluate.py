"""The loss of a model on fixed windows. Nothing is drawn, so evaluating never changes what training does."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gptloom.model.base import evaluating


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
