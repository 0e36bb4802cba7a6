"""Embeddings of hashed n-grams: one table, indexed by a hash of the last few tokens."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from gptloom.model.cache import Context, LayerCache

_SPREAD = 0x9E3779B97F4A7C15 - (1 << 64)  # 2**64 over the golden ratio, as a signed number (Knuth 1998, section 6.4)


class HashedNgrams(nn.Module):
    """Sum of the embeddings of all n-grams, from pairs to `longest` tokens, that end at a position.

    Rows are found by hashing: one table serves all lengths, and rare n-grams share rows. Sources: bags of n-grams
    (Joulin et al. 2016, section 2.3); n-gram embeddings added to a Transformer's token embeddings (Clark et al. 2022).

    Args:
        longest: maximum number of tokens in an n-gram, at least 2.
        rows: number of rows of the table.
        width: size of an embedding; all start at zero.
        dropout: probability that a position gets no n-gram embedding in training.
    """

    def __init__(self, longest: int, rows: int, width: int, dropout: float = 0.0) -> None:
        """Create the table. Gradients are dense unless an optimizer sets `sparse`."""
        super().__init__()
        self.longest, self.dropout, self.sparse = longest, dropout, False
        self.weight = nn.Parameter(torch.zeros(rows, width))

    def init_cache(self, batch: int) -> LayerCache:
        """The last `longest` - 1 tokens, (b, longest - 1); -1 where there is none."""
        return {"recent": torch.full((batch, self.longest - 1), -1, device=self.weight.device)}

    def forward(
        self, ids: Int[Tensor, "b t"], context: Context, cache: LayerCache | None = None
    ) -> Float[Tensor, "b t c"]:
        """Return the sum of the embeddings at each position; with a cache, its tokens come first."""
        rows = self.rows(ids, context, cache)
        sparse = self.sparse and not torch.compiler.is_compiling()
        found: Tensor = (_Lookup.apply if sparse else sum_rows)(self.weight, rows)
        kept = self.draw(found)
        return found if kept is None else found * kept

    def draw(self, sums: Float[Tensor, "b t c"]) -> Float[Tensor, "b t 1"] | None:
        """Draw the dropout mask: 1 keeps a position's embedding, 0 drops it; None if nothing is dropped.

        Unlike `nn.Dropout`, it does not scale up the kept values: an n-gram is either known or new, as when sampling.
        """
        if not self.training or not self.dropout:
            return None
        return (torch.rand_like(sums[..., :1]) >= self.dropout).to(sums.dtype)

    def rows(self, ids: Int[Tensor, "b t"], context: Context, cache: LayerCache | None = None) -> Int[Tensor, "b t k"]:
        """Return the row indices that `forward` sums, k = longest - 1 per position."""
        before = self.longest - 1
        recent = ids.new_full((len(ids), before), -1)
        if cache is not None:
            recent = torch.where(context.positions[..., :1] > 0, cache["recent"], recent)
        known = torch.cat((recent, ids), dim=1)
        if cache is not None:
            counts = torch.tensor(context.counts or [ids.shape[1]] * len(ids), device=ids.device)
            cache["recent"].copy_(known.gather(1, counts[:, None] + torch.arange(before, device=ids.device)))
        return ngram_rows(known, self.longest, len(self.weight))

    def accumulate_grad(self, rows: Int[Tensor, "b t k"], grad: Float[Tensor, "b t c"], fresh: bool) -> None:
        """Write the table's gradient (`fresh`) or add to it, given the gradient of the sums."""
        if self.sparse:
            found = _sparse_gradient(rows, grad, self.weight.shape)
            self.weight.grad = found if fresh or self.weight.grad is None else self.weight.grad + found
            return
        if self.weight.grad is None:
            self.weight.grad = torch.zeros_like(self.weight)
        elif fresh:
            self.weight.grad.zero_()
        for place in rows.flatten(0, 1).unbind(1):
            self.weight.grad.index_add_(0, place, grad.flatten(0, 1))


def sum_rows(weight: Float[Tensor, "r c"], rows: Int[Tensor, "b t k"]) -> Float[Tensor, "b t c"]:
    """Sum the k rows of each position."""
    return F.embedding_bag(rows.flatten(0, 1), weight, mode="sum").view(*rows.shape[:2], -1)


def ngram_rows(known: Int[Tensor, "b n"], longest: int, rows: int) -> Int[Tensor, "b t k"]:
    """Return the row of each n-gram of 2, 3, ..., `longest` tokens that ends at each position.

    The first `longest` - 1 positions of `known` only provide context. Ids below 0 mean no token.
    """
    codes = known + 1
    end = codes.shape[1]
    key = codes[:, longest - 1 :]
    found = []
    for back in range(1, longest):
        key = key * _SPREAD + codes[:, longest - 1 - back : end - back]
        # The high bits: the low bits of a product depend on few bits of its factors.
        found.append((((key ^ (key >> 32)) * _SPREAD) >> 33) % rows)
    return torch.stack(found, dim=-1)


def ngram_rows_at(before: list[int], last: int, rows: int) -> list[int]:
    """Return the rows of `ngram_rows` at one position, computed with Python integers, which is faster for one token.

    Args:
        before: the tokens before it.
        last: the token at this position.
        rows: number of rows of the table.
    """
    key, found = last + 1, []
    for one in reversed(before):
        key = _signed(key * _SPREAD + one + 1)
        found.append((_signed((key ^ (key >> 32)) * _SPREAD) >> 33) % rows)
    return found


def _signed(number: int) -> int:
    """Wrap an integer to 64 bits, two's complement."""
    return ((number + (1 << 63)) & ((1 << 64) - 1)) - (1 << 63)


class _Lookup(torch.autograd.Function):
    """Sum of rows whose gradient is sparse and coalesced."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, rows: Tensor) -> Tensor:
        ctx.rows, ctx.size = rows, weight.shape
        return sum_rows(weight, rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _sparse_gradient(ctx.rows, grad, ctx.size), None


def _sparse_gradient(rows: Int[Tensor, "b t k"], grad: Float[Tensor, "b t c"], size: torch.Size) -> Tensor:
    """Return the sparse gradient of the table; each row occurs once."""
    unique, places = torch.unique(rows.flatten(0, 1), return_inverse=True)
    grad, values = grad.flatten(0, 1), grad.new_zeros(len(unique), size[1])
    for place in places.unbind(1):
        values.index_add_(0, place, grad)
    return torch.sparse_coo_tensor(unique[None], values, size, is_coalesced=True, check_invariants=False)
