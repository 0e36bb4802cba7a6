"""Decoder, encoder, encoder-decoder: the same block, and who may look at whom."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """One head that asks in x and finds answers in `memory`, where `allowed` says so."""

    def __init__(self, width: int) -> None:
        """Three projections without bias."""
        super().__init__()
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, memory: Tensor, allowed: Tensor) -> Tensor:
        """(b, t, width) asks (b, s, width); `allowed` is (t, s)."""
        scores = self.query(x) @ self.key(memory).transpose(1, 2) * x.shape[-1] ** -0.5
        weights = F.softmax(scores.masked_fill(~allowed, float("-inf")), dim=-1)
        out: Tensor = weights @ self.value(memory)
        return out


def decoder_step(attention: Attention, x: Tensor) -> Tensor:
    """A decoder looks at itself and at what came before: it can go on writing."""
    t = x.shape[1]
    allowed = torch.tril(torch.ones(t, t, dtype=torch.bool))  # the one line
    out: Tensor = x + attention(x, x, allowed)
    return out


def encoder_step(attention: Attention, x: Tensor) -> Tensor:
    """An encoder looks everywhere: it can tell what is hidden, but not go on, for it was never without the future."""
    t = x.shape[1]
    allowed = torch.ones(t, t, dtype=torch.bool)  # the one line
    out: Tensor = x + attention(x, x, allowed)
    return out


def encoder_decoder_step(attention: Attention, cross: Attention, x: Tensor, source: Tensor) -> Tensor:
    """A decoder that also looks at everything an encoder has made of a source: it goes on writing about something."""
    x = decoder_step(attention, x)
    allowed = torch.ones(x.shape[1], source.shape[1], dtype=torch.bool)  # the whole source
    out: Tensor = x + cross(x, source, allowed)  # asks in x, finds its answers in the source
    return out
