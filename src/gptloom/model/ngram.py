"""Embeddings of hashed n-grams: what the last few tokens are together, looked up in one table."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from gptloom.model.cache import Context, Slot

_SPREAD = 0x9E3779B97F4A7C15 - (1 << 64)  # 2**64 over the golden ratio, as a signed number (Knuth 1998, section 6.4)


class HashedNgrams(nn.Module):
    """Adds up a vector for each n-gram that ends at a position, from pairs to n-grams of `longest` tokens.

    The rows are found by hashing, so that one table holds n-grams of all lengths, and rare ones share rows (bags of
    n-grams: Joulin et al. 2016, section 2.3; n-gram embeddings beside a Transformer's: Clark et al. 2022). The model
    reads its context as usual; what n-gram counts would know, it need not spend layers on.

    Args:
        longest: most tokens of an n-gram, at least 2.
        rows: of the table.
        width: of a row; they begin at zero.
        dropout: share of positions that go without, in training.
    """

    def __init__(self, longest: int, rows: int, width: int, dropout: float = 0.0) -> None:
        """Make the table; gradients are dense until an optimizer asks for sparse ones."""
        super().__init__()
        self.longest, self.dropout, self.sparse = longest, dropout, False
        self.weight = nn.Parameter(torch.zeros(rows, width))

    def init_slot(self, batch: int) -> Slot:
        """The tokens before the next one, (b, longest - 1); -1 where there are none."""
        return {"recent": torch.full((batch, self.longest - 1), -1, device=self.weight.device)}

    def forward(self, ids: Int[Tensor, "b t"], context: Context, slot: Slot | None = None) -> Float[Tensor, "b t c"]:
        """The sum at each position; when there is a slot, its tokens come before these, and then it holds these."""
        rows = self.rows(ids, context, slot)
        sparse = self.sparse and not torch.compiler.is_compiling()
        found: Tensor = _Lookup.apply(self.weight, rows) if sparse else look_up(self.weight, rows)  # type: ignore[no-untyped-call]
        kept = self.draw(found)
        return found if kept is None else found * kept

    def draw(self, sums: Float[Tensor, "b t c"]) -> Float[Tensor, "b t 1"] | None:
        """1 for the positions that have their n-grams, 0 for those that go without; None where all have them.

        What is kept is not scaled up, as other dropout does it: a sum is there as it will be when writing, or is not,
        as if its n-grams were new.
        """
        return (
            (torch.rand_like(sums[..., :1]) >= self.dropout).to(sums.dtype) if self.training and self.dropout else None
        )

    def rows(self, ids: Int[Tensor, "b t"], context: Context, slot: Slot | None = None) -> Int[Tensor, "b t k"]:
        """The rows that `forward` adds up."""
        before = self.longest - 1
        recent = ids.new_full((len(ids), before), -1)
        if slot is not None:
            recent = torch.where(context.positions[..., :1] > 0, slot["recent"], recent)
        known = torch.cat((recent, ids), dim=1)
        if slot is not None:
            counts = torch.tensor(context.counts or [ids.shape[1]] * len(ids), device=ids.device)
            slot["recent"].copy_(known.gather(1, counts[:, None] + torch.arange(before, device=ids.device)))
        return ngram_rows(known, self.longest, len(self.weight))

    def accumulate_grad(self, rows: Int[Tensor, "b t k"], grad: Float[Tensor, "b t c"], fresh: bool) -> None:
        """Make the gradient of the sums the table's (`fresh`), or add it to the table's, as autograd does otherwise."""
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


def look_up(weight: Float[Tensor, "r c"], rows: Int[Tensor, "b t k"]) -> Float[Tensor, "b t c"]:
    """The sum of some rows at each position."""
    return F.embedding_bag(rows.flatten(0, 1), weight, mode="sum").view(*rows.shape[:2], -1)


def ngram_rows(known: Int[Tensor, "b n"], longest: int, rows: int) -> Int[Tensor, "b t k"]:
    """The row of each n-gram of 2, 3, ...

    `longest` tokens that ends at each place but the first `longest` - 1; ids below 0 are no token.
    """
    codes = known + 1
    end = codes.shape[1]
    key = codes[:, longest - 1 :]
    found = []
    for back in range(1, longest):
        key = key * _SPREAD + codes[:, longest - 1 - back : end - back]
        found.append(
            ((key ^ key >> 32) * _SPREAD >> 33) % rows
        )  # high bits: a product's low ones depend on few bits of its factors
    return torch.stack(found, dim=-1)


def ngram_rows_at(before: list[int], last: int, rows: int) -> list[int]:
    """What `ngram_rows` finds at the place of `last`, after the tokens `before`; in plain numbers, which begin sooner."""
    key, found = last + 1, []
    for one in reversed(before):
        key = _signed(key * _SPREAD + one + 1)
        found.append((_signed((key ^ key >> 32) * _SPREAD) >> 33) % rows)
    return found


def _signed(number: int) -> int:
    """What is left of a number in 64 bits."""
    return (number + (1 << 63) & (1 << 64) - 1) - (1 << 63)


class _Lookup(torch.autograd.Function):
    """Sums of rows, with a sparse gradient whose rows occur once each."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, rows: Tensor) -> Tensor:
        ctx.rows, ctx.size = rows, weight.shape
        return look_up(weight, rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _sparse_gradient(ctx.rows, grad, ctx.size), None


def _sparse_gradient(rows: Int[Tensor, "b t k"], grad: Float[Tensor, "b t c"], size: torch.Size) -> Tensor:
    """The table's gradient, in which each row occurs once."""
    unique, places = torch.unique(rows.flatten(0, 1), return_inverse=True)
    grad, values = grad.flatten(0, 1), grad.new_zeros(len(unique), size[1])
    for place in places.unbind(1):
        values.index_add_(0, place, grad)
    return torch.sparse_coo_tensor(unique[None], values, size, is_coalesced=True, check_invariants=False)
