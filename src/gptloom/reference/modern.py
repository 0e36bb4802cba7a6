"""Later improvements: GPT-2's initial weights and GELU, then the layers of current models (Llama, Qwen3).

The block stays the same, communication and computation with residual connections; only its layers are replaced.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptloom.reference.lecture import FeedForward, Head, LayerNorm, PlainGPT


def gpt2_weights(model: "PlainGPT | ModernGPT") -> None:
    """Draw the initial weights as in GPT-2 (Radford et al. 2019), in place.

    All weights start small, so that the first logits prefer no token. The projections that write to the residual stream
    start even smaller, because the sum has 2 n_layer branches. The gain of the final norm limits the standard deviation
    of the first logits to 0.1 for every width.
    """
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear | nn.Embedding):
            writes = name.endswith((".projection", ".down"))
            nn.init.normal_(layer.weight, std=0.02 / math.sqrt(2 * len(model.blocks)) if writes else 0.02)
        if isinstance(layer, nn.Linear) and layer.bias is not None:
            nn.init.zeros_(layer.bias)
    width = model.token_table.embedding_dim
    nn.init.constant_(model.final_norm.gain, min(1.0, 0.1 / (0.02 * math.sqrt(width))))


def gelu(x: Tensor) -> Tensor:
    """GELU, a smooth ReLU, in GPT-2's tanh approximation (Hendrycks and Gimpel 2016)."""
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


class GELUFeedForward(FeedForward):
    """The feed-forward layer with GELU instead of ReLU."""

    def forward(self, x: Tensor) -> Tensor:
        """Expand, apply GELU, contract."""
        out: Tensor = self.dropout(self.down(gelu(self.up(x))))
        return out


class GELUModel(PlainGPT):
    """The lecture's GPT with GELU."""

    def __init__(
        self, vocab_size: int, block_size: int, n_embd: int, n_head: int, n_layer: int, dropout: float = 0.0
    ) -> None:
        """Replace the feed-forward layer of each block."""
        super().__init__(vocab_size, block_size, n_embd, n_head, n_layer, dropout)
        for block in self.blocks:
            block.feed_forward = GELUFeedForward(n_embd, dropout)


def rotate(x: Tensor, theta: float = 10_000.0) -> Tensor:
    """Rotary embedding (Su et al. 2021); (b, t, d) to (b, t, d).

    Rotates the features (i, i + d/2) of the vector at position t by the angle t * theta ** (-2i / d). The product of a
    rotated query and a rotated key then depends only on the distance of their positions.
    """
    t, d = x.shape[1:]
    speeds = theta ** -(torch.arange(0, d, 2, dtype=torch.float64) / d)
    angles = torch.outer(torch.arange(t, dtype=torch.float64), speeds).float().to(x.device)  # (t, d/2)
    first, second = x[..., : d // 2], x[..., d // 2 :]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class RotaryHead(Head):
    """A head that rotates queries and keys by their position, which replaces the position table."""

    def __init__(
        self, n_embd: int, head_size: int, block_size: int, dropout: float = 0.0, theta: float = 10_000.0
    ) -> None:
        """Build a head; theta determines the slowest rotation."""
        super().__init__(n_embd, head_size, block_size, dropout)
        self.theta = theta

    def forward(self, x: Tensor) -> Tensor:
        """Attend with rotated queries and keys; the values are not rotated."""
        t = x.shape[1]
        query, key = rotate(self.query(x), self.theta), rotate(self.key(x), self.theta)
        scores = query @ key.transpose(1, 2) * self.scale
        scores = scores.masked_fill(~self.get_buffer("past")[:t, :t], float("-inf"))
        out: Tensor = self.dropout(F.softmax(scores, dim=-1)) @ self.value(x)
        return out


class RotaryAttention(nn.Module):
    """Several rotary heads, concatenated and mixed by a projection."""

    def __init__(
        self,
        n_embd: int,
        n_head: int,
        block_size: int,
        dropout: float = 0.0,
        theta: float = 10_000.0,
        bias: bool = True,
    ) -> None:
        """Heads of width n_embd / n_head; `bias` applies to the projection."""
        super().__init__()
        self.heads = nn.ModuleList(
            RotaryHead(n_embd, n_embd // n_head, block_size, dropout, theta) for _ in range(n_head)
        )
        self.projection = nn.Linear(n_embd, n_embd, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Run the heads one after the other; (b, t, n_embd) to (b, t, n_embd)."""
        joined = torch.cat([head(x) for head in self.heads], dim=-1)
        out: Tensor = self.dropout(self.projection(joined))
        return out


class RMSNorm(nn.Module):
    """LayerNorm without mean and bias: divides by the root mean square (Zhang and Sennrich 2019)."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        """Start with gain 1."""
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise over the last axis."""
        return self.gain * x / torch.sqrt((x**2).mean(dim=-1, keepdim=True) + self.eps)


class GroupedAttention(nn.Module):
    """Attention as in Qwen3: fewer key-value heads than query heads; queries and keys are normalised, then rotated.

    If n_kv_head = n_head, every query head has its own keys and values (steps `qk-norm` and `swiglu`). Otherwise
    n_head / n_kv_head adjacent query heads share them (Ainslie et al. 2023), and the cache shrinks by that factor.
    """

    def __init__(
        self,
        n_embd: int,
        n_head: int,
        n_kv_head: int,
        block_size: int,
        dropout: float = 0.0,
        theta: float = 10_000.0,
        bias: bool = True,
    ) -> None:
        """All heads of the layer share the two norms; `bias` applies to the projection."""
        super().__init__()
        head_size = n_embd // n_head
        self.queries = nn.ModuleList(nn.Linear(n_embd, head_size, bias=False) for _ in range(n_head))
        self.keys = nn.ModuleList(nn.Linear(n_embd, head_size, bias=False) for _ in range(n_kv_head))
        self.values = nn.ModuleList(nn.Linear(n_embd, head_size, bias=False) for _ in range(n_kv_head))
        self.query_norm, self.key_norm = RMSNorm(head_size), RMSNorm(head_size)
        self.projection = nn.Linear(n_embd, n_embd, bias=bias)
        self.weight_dropout, self.dropout = nn.Dropout(dropout), nn.Dropout(dropout)
        self.head_size, self.theta, self.sharing = head_size, theta, n_head // n_kv_head
        self.register_buffer("past", torch.tril(torch.ones(block_size, block_size, dtype=torch.bool)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Run the heads one after the other; (b, t, n_embd) to (b, t, n_embd)."""
        t = x.shape[1]
        keys = [rotate(self.key_norm(key(x)), self.theta) for key in self.keys]
        values = [value(x) for value in self.values]
        joined = []
        for h, query in enumerate(self.queries):
            group = h // self.sharing
            scores = rotate(self.query_norm(query(x)), self.theta) @ keys[group].transpose(1, 2) * self.head_size**-0.5
            scores = scores.masked_fill(~self.get_buffer("past")[:t, :t], float("-inf"))
            joined.append(self.weight_dropout(F.softmax(scores, dim=-1)) @ values[group])
        out: Tensor = self.dropout(self.projection(torch.cat(joined, dim=-1)))
        return out


class SwiGLU(nn.Module):
    """Feed-forward layer with a gate: one projection is multiplied by the SiLU of another (Shazeer 2020)."""

    def __init__(self, n_embd: int, width: int, dropout: float = 0.0, bias: bool = False) -> None:
        """Three matrices. With width 8/3 n_embd (rounded up to 8), they are about as large as two of width 4 n_embd."""
        super().__init__()
        self.gate = nn.Linear(n_embd, width, bias=bias)
        self.up = nn.Linear(n_embd, width, bias=bias)
        self.down = nn.Linear(width, n_embd, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Expand twice, apply the gate, contract."""
        out: Tensor = self.dropout(self.down(F.silu(self.gate(x)) * self.up(x)))
        return out


class ModernBlock(nn.Module):
    """The same block with replaceable layers."""

    def __init__(self, norm1: nn.Module, attention: nn.Module, norm2: nn.Module, feed_forward: nn.Module) -> None:
        """Store the layers."""
        super().__init__()
        self.norm1, self.attention, self.norm2, self.feed_forward = norm1, attention, norm2, feed_forward

    def forward(self, x: Tensor) -> Tensor:
        """Normalise, transform, add; twice."""
        x = x + self.attention(self.norm1(x))
        out: Tensor = x + self.feed_forward(self.norm2(x))
        return out


class ModernGPT(nn.Module):
    """A GPT without a position table: its heads use rotary embeddings."""

    def __init__(
        self, vocab_size: int, n_embd: int, blocks: list[ModernBlock], final_norm: LayerNorm | RMSNorm, head_bias: bool
    ) -> None:
        """Token table, blocks, final norm, linear layer."""
        super().__init__()
        self.token_table = nn.Embedding(vocab_size, n_embd)
        self.blocks = nn.Sequential(*blocks)
        self.final_norm = final_norm
        self.head = nn.Linear(n_embd, vocab_size, bias=head_bias)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits (b, t, vocab_size) from ids (b, t)."""
        logits: Tensor = self.head(self.final_norm(self.blocks(self.token_table(ids))))
        return logits
