"""The lecture's GPT: head, multi-head attention, feed-forward layer, LayerNorm, block, and the complete model.

The functions at the end show decoder, encoder and encoder-decoder: they differ only in the attention mask.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Head(nn.Module):
    """One head of causal self-attention: (b, t, n_embd) to (b, t, head_size)."""

    def __init__(
        self, n_embd: int, head_size: int, block_size: int, dropout: float = 0.0, scale: float | None = None
    ) -> None:
        """Three projections without bias; scores are multiplied by `scale` (default: head_size ** -0.5)."""
        super().__init__()
        self.query = nn.Linear(n_embd, head_size, bias=False)
        self.key = nn.Linear(n_embd, head_size, bias=False)
        self.value = nn.Linear(n_embd, head_size, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.scale = head_size**-0.5 if scale is None else scale
        self.register_buffer("past", torch.tril(torch.ones(block_size, block_size, dtype=torch.bool)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Average the values of each position and the earlier ones, weighted by how well query and key match."""
        t = x.shape[1]
        scores = self.query(x) @ self.key(x).transpose(1, 2) * self.scale  # (b, t, t): match of each query and key
        scores = scores.masked_fill(~self.get_buffer("past")[:t, :t], float("-inf"))  # no position sees the future
        weights = F.softmax(scores, dim=-1)  # each row sums to 1
        out: Tensor = self.dropout(weights) @ self.value(x)
        return out


class MultiHeadAttention(nn.Module):
    """Several heads in parallel, concatenated and mixed by a projection."""

    def __init__(
        self, n_embd: int, n_head: int, block_size: int, dropout: float = 0.0, scale: float | None = None
    ) -> None:
        """Heads of width n_embd / n_head."""
        super().__init__()
        self.heads = nn.ModuleList(Head(n_embd, n_embd // n_head, block_size, dropout, scale) for _ in range(n_head))
        self.projection = nn.Linear(n_embd, n_embd)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Run the heads one after the other; (b, t, n_embd) to (b, t, n_embd)."""
        joined = torch.cat([head(x) for head in self.heads], dim=-1)
        out: Tensor = self.dropout(self.projection(joined))
        return out


class FeedForward(nn.Module):
    """The MLP: processes the output of attention at each position separately."""

    def __init__(self, n_embd: int, dropout: float = 0.0) -> None:
        """The hidden layer is four times as wide."""
        super().__init__()
        self.up = nn.Linear(n_embd, 4 * n_embd)
        self.down = nn.Linear(4 * n_embd, n_embd)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Expand, apply ReLU, contract."""
        out: Tensor = self.dropout(self.down(F.relu(self.up(x))))
        return out


class LayerNorm(nn.Module):
    """Normalises each vector to mean 0 and variance 1, then applies a learned gain and bias."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        """Start with gain 1 and bias 0."""
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise over the last axis."""
        mean = x.mean(dim=-1, keepdim=True)
        variance = ((x - mean) ** 2).mean(dim=-1, keepdim=True)
        return self.gain * (x - mean) / torch.sqrt(variance + self.eps) + self.bias


class Block(nn.Module):
    """Communication (attention), then computation (MLP), each added to the residual stream."""

    def __init__(
        self, n_embd: int, n_head: int, block_size: int, dropout: float = 0.0, scale: float | None = None
    ) -> None:
        """One layer of the Transformer."""
        super().__init__()
        self.norm1 = LayerNorm(n_embd)
        self.attention = MultiHeadAttention(n_embd, n_head, block_size, dropout, scale)
        self.norm2 = LayerNorm(n_embd)
        self.feed_forward = FeedForward(n_embd, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise, transform, add; twice."""
        x = x + self.attention(self.norm1(x))
        out: Tensor = x + self.feed_forward(self.norm2(x))
        return out


class PlainGPT(nn.Module):
    """The complete model: token and position embeddings, n_layer blocks, and a linear layer for the next token."""

    def __init__(
        self,
        vocab_size: int,
        block_size: int,
        n_embd: int,
        n_head: int,
        n_layer: int,
        dropout: float = 0.0,
        scale: float | None = None,
    ) -> None:
        """Build the model with PyTorch's default initial weights."""
        super().__init__()
        self.block_size = block_size
        self.token_table = nn.Embedding(vocab_size, n_embd)
        self.position_table = nn.Embedding(block_size, n_embd)
        self.blocks = nn.Sequential(*(Block(n_embd, n_head, block_size, dropout, scale) for _ in range(n_layer)))
        self.final_norm = LayerNorm(n_embd)
        self.head = nn.Linear(n_embd, vocab_size)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits (b, t, vocab_size) from ids (b, t)."""
        x = self.token_table(ids) + self.position_table(torch.arange(ids.shape[1], device=ids.device))
        logits: Tensor = self.head(self.final_norm(self.blocks(x)))
        return logits

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats; targets (b, t) are the ids shifted by one position."""
        return F.cross_entropy(self(ids).flatten(0, 1), targets.flatten())

    @torch.no_grad()
    def generate(self, ids: Tensor, tokens: int) -> Tensor:
        """Continue ids (b, t) by `tokens` sampled tokens; each one recomputes the complete context."""
        for _ in range(tokens):
            logits = self(ids[:, -self.block_size :])[:, -1]  # only the last position's logits are needed
            drawn = torch.multinomial(F.softmax(logits, dim=-1), num_samples=1)
            ids = torch.cat((ids, drawn), dim=1)
        return ids


class Attention(nn.Module):
    """One head with queries from x, and keys and values from `memory`; `allowed` is the mask."""

    def __init__(self, width: int) -> None:
        """Three projections without bias."""
        super().__init__()
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, memory: Tensor, allowed: Tensor) -> Tensor:
        """Attend from x (b, t, width) to memory (b, s, width); `allowed` is (t, s)."""
        scores = self.query(x) @ self.key(memory).transpose(1, 2) * x.shape[-1] ** -0.5
        weights = F.softmax(scores.masked_fill(~allowed, float("-inf")), dim=-1)
        out: Tensor = weights @ self.value(memory)
        return out


def decoder_step(attention: Attention, x: Tensor) -> Tensor:
    """In a decoder, a position sees itself and earlier positions, so it can generate text."""
    t = x.shape[1]
    allowed = torch.tril(torch.ones(t, t, dtype=torch.bool))  # the one line
    out: Tensor = x + attention(x, x, allowed)
    return out


def encoder_step(attention: Attention, x: Tensor) -> Tensor:
    """In an encoder, a position sees all positions: it can predict masked tokens, but cannot continue a text."""
    t = x.shape[1]
    allowed = torch.ones(t, t, dtype=torch.bool)  # the one line
    out: Tensor = x + attention(x, x, allowed)
    return out


def encoder_decoder_step(attention: Attention, cross: Attention, x: Tensor, source: Tensor) -> Tensor:
    """In an encoder-decoder, the decoder also sees all of the encoder's output, so its text depends on a source."""
    x = decoder_step(attention, x)
    allowed = torch.ones(x.shape[1], source.shape[1], dtype=torch.bool)  # all positions of the source
    out: Tensor = x + cross(x, source, allowed)  # queries from x, keys and values from the source
    return out
