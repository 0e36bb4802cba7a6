"""The steps to the lecture's GPT: each model adds one thing to the previous one.

All map ids (b, t) to logits (b, t, vocab_size). Attention in these steps scales the scores by n_embd ** -0.5, as the
lecture's documents do by mistake, so that their numbers can be reproduced. The step `score-scale` corrects it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptloom.reference.lecture import Block, FeedForward, Head, MultiHeadAttention


class Bigram(nn.Module):
    """A table of logits: the row of the current token has the logits of the next one."""

    def __init__(self, vocab_size: int) -> None:
        """One row for each token, one column for each next token."""
        super().__init__()
        self.token_table = nn.Embedding(vocab_size, vocab_size)

    def forward(self, ids: Tensor) -> Tensor:
        """Look up the rows."""
        logits: Tensor = self.token_table(ids)
        return logits


class Embedded(nn.Module):
    """The same in two steps: token to vector, vector to logits. Similar tokens can now have similar vectors."""

    def __init__(self, vocab_size: int, n_embd: int) -> None:
        """A vector for each token, and a linear layer."""
        super().__init__()
        self.token_table = nn.Embedding(vocab_size, n_embd)
        self.head = nn.Linear(n_embd, vocab_size)

    def forward(self, ids: Tensor) -> Tensor:
        """Look up the vectors, and compute the logits."""
        logits: Tensor = self.head(self.token_table(ids))
        return logits


class Positioned(nn.Module):
    """A second table has a vector for each position; the two vectors are added."""

    def __init__(self, vocab_size: int, block_size: int, n_embd: int) -> None:
        """A vector for each token, and one for each of the block_size positions."""
        super().__init__()
        self.token_table = nn.Embedding(vocab_size, n_embd)
        self.position_table = nn.Embedding(block_size, n_embd)
        self.head = nn.Linear(n_embd, vocab_size)

    def embed(self, ids: Tensor) -> Tensor:
        """Return token embedding plus position embedding, (b, t, n_embd)."""
        places = torch.arange(ids.shape[1], device=ids.device)
        vectors: Tensor = self.token_table(ids) + self.position_table(places)
        return vectors

    def forward(self, ids: Tensor) -> Tensor:
        """Compute the logits; each position still sees only its own token."""
        logits: Tensor = self.head(self.embed(ids))
        return logits


def average_by_loop(x: Tensor) -> Tensor:
    """Return the mean of each vector and all earlier ones, by its definition; (b, t, c) to (b, t, c)."""
    out = torch.empty_like(x)
    for b in range(x.shape[0]):
        for t in range(x.shape[1]):
            out[b, t] = x[b, : t + 1].mean(dim=0)
    return out


def average_by_matrix(x: Tensor) -> Tensor:
    """Compute the same as one matrix product: row t of the matrix has t + 1 equal weights of sum 1, then zeros."""
    t = x.shape[1]
    weights = torch.tril(torch.ones(t, t, dtype=x.dtype, device=x.device))
    weights = weights / weights.sum(dim=1, keepdim=True)
    return weights @ x  # (t, t) @ (b, t, c)


def average_by_softmax(x: Tensor) -> Tensor:
    """Compute the same by a softmax: scores are 0, and minus infinity for the future. Attention replaces the zeros."""
    t = x.shape[1]
    past = torch.tril(torch.ones(t, t, dtype=torch.bool, device=x.device))
    scores = torch.zeros(t, t, dtype=x.dtype, device=x.device).masked_fill(~past, float("-inf"))
    return F.softmax(scores, dim=-1) @ x


class Averaged(Positioned):
    """The first exchange between tokens: each position receives the mean of itself and all earlier ones."""

    def forward(self, ids: Tensor) -> Tensor:
        """Embed, average, compute the logits."""
        logits: Tensor = self.head(average_by_matrix(self.embed(ids)))
        return logits


class OneHeadModel(Positioned):
    """One attention head of width n_embd instead of the mean: its weights depend on the tokens."""

    def __init__(self, vocab_size: int, block_size: int, n_embd: int) -> None:
        """Tables, one head, a linear layer."""
        super().__init__(vocab_size, block_size, n_embd)
        self.attention = Head(n_embd, n_embd, block_size, scale=n_embd**-0.5)

    def forward(self, ids: Tensor) -> Tensor:
        """Embed, attend, compute the logits; the head's output replaces the embedding."""
        logits: Tensor = self.head(self.attention(self.embed(ids)))
        return logits


class JoinedHeads(nn.Module):
    """Several narrower heads in parallel; each can attend to something different."""

    def __init__(self, n_embd: int, n_head: int, block_size: int, scale: float | None = None) -> None:
        """Heads of width n_embd / n_head; concatenated, they have width n_embd."""
        super().__init__()
        self.heads = nn.ModuleList(Head(n_embd, n_embd // n_head, block_size, scale=scale) for _ in range(n_head))

    def forward(self, x: Tensor) -> Tensor:
        """Run the heads one after the other and concatenate the results."""
        return torch.cat([head(x) for head in self.heads], dim=-1)


class MultiHeadModel(Positioned):
    """Several heads instead of one."""

    def __init__(self, vocab_size: int, block_size: int, n_embd: int, n_head: int) -> None:
        """As with one head; the documents' scale uses the full width n_embd."""
        super().__init__(vocab_size, block_size, n_embd)
        self.attention = JoinedHeads(n_embd, n_head, block_size, scale=n_embd**-0.5)

    def forward(self, ids: Tensor) -> Tensor:
        """Embed, attend, compute the logits."""
        logits: Tensor = self.head(self.attention(self.embed(ids)))
        return logits


class MLPModel(MultiHeadModel):
    """After attention, an MLP processes each position."""

    def __init__(self, vocab_size: int, block_size: int, n_embd: int, n_head: int) -> None:
        """The previous model, and a feed-forward layer."""
        super().__init__(vocab_size, block_size, n_embd, n_head)
        self.feed_forward = FeedForward(n_embd)

    def forward(self, ids: Tensor) -> Tensor:
        """Embed, attend, apply the MLP, compute the logits."""
        logits: Tensor = self.head(self.feed_forward(self.attention(self.embed(ids))))
        return logits


class ResidualBlock(nn.Module):
    """Communication, then computation, each added to its input: gradients flow directly through the sum."""

    def __init__(self, n_embd: int, n_head: int, block_size: int, scale: float | None = None) -> None:
        """The heads now have a projection, which determines what they add to the residual stream."""
        super().__init__()
        self.attention = MultiHeadAttention(n_embd, n_head, block_size, scale=scale)
        self.feed_forward = FeedForward(n_embd)

    def forward(self, x: Tensor) -> Tensor:
        """Transform and add; twice."""
        x = x + self.attention(x)
        out: Tensor = x + self.feed_forward(x)
        return out


class ResidualModel(Positioned):
    """Residual connections make it possible to stack blocks."""

    def __init__(self, vocab_size: int, block_size: int, n_embd: int, n_head: int, n_layer: int) -> None:
        """Tables, n_layer blocks, a linear layer."""
        super().__init__(vocab_size, block_size, n_embd)
        self.blocks = nn.Sequential(
            *(ResidualBlock(n_embd, n_head, block_size, scale=n_embd**-0.5) for _ in range(n_layer))
        )

    def forward(self, ids: Tensor) -> Tensor:
        """Embed, run the blocks, compute the logits."""
        logits: Tensor = self.head(self.blocks(self.embed(ids)))
        return logits


class PostNormBlock(Block):
    """The Transformer of 2017 normalises each sum; the lecture's GPT normalises the input of each branch."""

    def forward(self, x: Tensor) -> Tensor:
        """Transform, add, normalise; twice."""
        x = self.norm1(x + self.attention(x))
        out: Tensor = self.norm2(x + self.feed_forward(x))
        return out


class PostNormModel(Positioned):
    """There is no final norm, because the last block already ends with a norm."""

    def __init__(
        self, vocab_size: int, block_size: int, n_embd: int, n_head: int, n_layer: int, scale: float | None = None
    ) -> None:
        """Tables, n_layer blocks, a linear layer."""
        super().__init__(vocab_size, block_size, n_embd)
        self.blocks = nn.Sequential(*(PostNormBlock(n_embd, n_head, block_size, scale=scale) for _ in range(n_layer)))

    def forward(self, ids: Tensor) -> Tensor:
        """Embed, run the blocks, compute the logits."""
        logits: Tensor = self.head(self.blocks(self.embed(ids)))
        return logits
