"""The way to the lecture's GPT: each model is the one before it with one thing more.

All map ids (b, t) to logits (b, t, vocab_size). The attention of these steps multiplies its scores by n_embd ** -0.5,
the documents' error, so that their numbers can be followed; the step `score-scale` corrects it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptloom.reference.lecture import Block, FeedForward, Head, MultiHeadAttention


class Bigram(nn.Module):
    """A table of logits: the row of the token at hand says what may come next, and nothing else counts."""

    def __init__(self, vocab_size: int) -> None:
        """A row for each token, a column for each that may follow."""
        super().__init__()
        self.token_table = nn.Embedding(vocab_size, vocab_size)

    def forward(self, ids: Tensor) -> Tensor:
        """Look the rows up."""
        logits: Tensor = self.token_table(ids)
        return logits


class Embedded(nn.Module):
    """The same question in two steps: token to vector, vector to logits. Tokens that behave alike can now lie close together."""

    def __init__(self, vocab_size: int, n_embd: int) -> None:
        """A vector for each token, and a linear layer that reads it."""
        super().__init__()
        self.token_table = nn.Embedding(vocab_size, n_embd)
        self.head = nn.Linear(n_embd, vocab_size)

    def forward(self, ids: Tensor) -> Tensor:
        """Token, vector, logits."""
        logits: Tensor = self.head(self.token_table(ids))
        return logits


class Positioned(nn.Module):
    """A second table says where the token stands; the two vectors are added."""

    def __init__(self, vocab_size: int, block_size: int, n_embd: int) -> None:
        """A vector for each token, and one for each of the block_size places."""
        super().__init__()
        self.token_table = nn.Embedding(vocab_size, n_embd)
        self.position_table = nn.Embedding(block_size, n_embd)
        self.head = nn.Linear(n_embd, vocab_size)

    def embed(self, ids: Tensor) -> Tensor:
        """What the token is, plus where it stands: (b, t, n_embd)."""
        places = torch.arange(ids.shape[1], device=ids.device)
        vectors: Tensor = self.token_table(ids) + self.position_table(places)
        return vectors

    def forward(self, ids: Tensor) -> Tensor:
        """Still no token knows of any other."""
        logits: Tensor = self.head(self.embed(ids))
        return logits


def average_by_loop(x: Tensor) -> Tensor:
    """The mean of each vector and all before it, as one would say it; (b, t, c) to the same."""
    out = torch.empty_like(x)
    for b in range(x.shape[0]):
        for t in range(x.shape[1]):
            out[b, t] = x[b, : t + 1].mean(dim=0)
    return out


def average_by_matrix(x: Tensor) -> Tensor:
    """The same as one product: row t of the matrix has t + 1 equal weights that sum to 1, then zeros."""
    t = x.shape[1]
    weights = torch.tril(torch.ones(t, t, dtype=x.dtype, device=x.device))
    weights = weights / weights.sum(dim=1, keepdim=True)
    return weights @ x  # (t, t) @ (b, t, c)


def average_by_softmax(x: Tensor) -> Tensor:
    """The same once more: all scores are 0, the future's are minus infinity. Attention will put scores of its own in their place."""
    t = x.shape[1]
    past = torch.tril(torch.ones(t, t, dtype=torch.bool, device=x.device))
    scores = torch.zeros(t, t, dtype=x.dtype, device=x.device).masked_fill(~past, float("-inf"))
    return F.softmax(scores, dim=-1) @ x


class Averaged(Positioned):
    """Tokens hear of one another for the first time: each receives the mean of itself and all before it."""

    def forward(self, ids: Tensor) -> Tensor:
        """Embed, average, read."""
        logits: Tensor = self.head(average_by_matrix(self.embed(ids)))
        return logits


class OneHeadModel(Positioned):
    """One head as wide as the stream chooses whom to listen to, in place of the mean."""

    def __init__(self, vocab_size: int, block_size: int, n_embd: int) -> None:
        """Tables, a head, a linear layer."""
        super().__init__(vocab_size, block_size, n_embd)
        self.attention = Head(n_embd, n_embd, block_size, scale=n_embd**-0.5)

    def forward(self, ids: Tensor) -> Tensor:
        """Embed, attend, read; what the head says replaces what was there."""
        logits: Tensor = self.head(self.attention(self.embed(ids)))
        return logits


class JoinedHeads(nn.Module):
    """Several narrower heads side by side; each may listen for something else."""

    def __init__(self, n_embd: int, n_head: int, block_size: int, scale: float | None = None) -> None:
        """Heads of width n_embd / n_head, so that together they are as wide as the stream."""
        super().__init__()
        self.heads = nn.ModuleList(Head(n_embd, n_embd // n_head, block_size, scale=scale) for _ in range(n_head))

    def forward(self, x: Tensor) -> Tensor:
        """Run them one after the other and lay the results side by side."""
        return torch.cat([head(x) for head in self.heads], dim=-1)


class MultiHeadModel(Positioned):
    """Several heads in place of one."""

    def __init__(self, vocab_size: int, block_size: int, n_embd: int, n_head: int) -> None:
        """As with one head; the documents' scale is that of the whole width."""
        super().__init__(vocab_size, block_size, n_embd)
        self.attention = JoinedHeads(n_embd, n_head, block_size, scale=n_embd**-0.5)

    def forward(self, ids: Tensor) -> Tensor:
        """Embed, attend, read."""
        logits: Tensor = self.head(self.attention(self.embed(ids)))
        return logits


class MLPModel(MultiHeadModel):
    """After listening, each position thinks about what it has heard."""

    def __init__(self, vocab_size: int, block_size: int, n_embd: int, n_head: int) -> None:
        """The model before, and a feed-forward layer."""
        super().__init__(vocab_size, block_size, n_embd, n_head)
        self.feed_forward = FeedForward(n_embd)

    def forward(self, ids: Tensor) -> Tensor:
        """Embed, attend, think, read."""
        logits: Tensor = self.head(self.feed_forward(self.attention(self.embed(ids))))
        return logits


class ResidualBlock(nn.Module):
    """Communication, then computation, each added to what was there: the way straight through keeps gradients alive."""

    def __init__(self, n_embd: int, n_head: int, block_size: int, scale: float | None = None) -> None:
        """The heads now have a projection, which decides what of theirs is written into the stream."""
        super().__init__()
        self.attention = MultiHeadAttention(n_embd, n_head, block_size, scale=scale)
        self.feed_forward = FeedForward(n_embd)

    def forward(self, x: Tensor) -> Tensor:
        """Transform and add; twice."""
        x = x + self.attention(x)
        out: Tensor = x + self.feed_forward(x)
        return out


class ResidualModel(Positioned):
    """With residual connections one can stack blocks."""

    def __init__(self, vocab_size: int, block_size: int, n_embd: int, n_head: int, n_layer: int) -> None:
        """Tables, n_layer blocks, a linear layer."""
        super().__init__(vocab_size, block_size, n_embd)
        self.blocks = nn.Sequential(
            *(ResidualBlock(n_embd, n_head, block_size, scale=n_embd**-0.5) for _ in range(n_layer))
        )

    def forward(self, ids: Tensor) -> Tensor:
        """Embed, go through the blocks, read."""
        logits: Tensor = self.head(self.blocks(self.embed(ids)))
        return logits


class PostNormBlock(Block):
    """The Transformer of 2017 normalised each sum; the lecture's GPT normalises what goes into a branch."""

    def forward(self, x: Tensor) -> Tensor:
        """Transform, add, normalise; twice."""
        x = self.norm1(x + self.attention(x))
        out: Tensor = self.norm2(x + self.feed_forward(x))
        return out


class PostNormModel(Positioned):
    """The last block's second norm is the last norm: there is no other before the head."""

    def __init__(
        self, vocab_size: int, block_size: int, n_embd: int, n_head: int, n_layer: int, scale: float | None = None
    ) -> None:
        """Tables, n_layer blocks, a linear layer."""
        super().__init__(vocab_size, block_size, n_embd)
        self.blocks = nn.Sequential(*(PostNormBlock(n_embd, n_head, block_size, scale=scale) for _ in range(n_layer)))

    def forward(self, ids: Tensor) -> Tensor:
        """Embed, go through the blocks, read."""
        logits: Tensor = self.head(self.blocks(self.embed(ids)))
        return logits
