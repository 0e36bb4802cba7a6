"""`TensorKit`: decoder operations on tensors (n, c), for many rows or for prompts, on any device."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptloom.fast.int8 import FEW, Int8Linear
from gptloom.fast.ops import Kit, Unknown
from gptloom.model.attention import Attention
from gptloom.model.cache import LayerCache
from gptloom.model.layers import MLP, CausalMean, activate, rotate
from gptloom.model.ngram import HashedNgrams, ngram_rows
from gptloom.model.transformer import Decoder

Map = Callable[[Tensor], Tensor]

LARGE = 1_500_000
"""Number of multiplications in a product from which oneDNN is faster than MKL.

oneDNN uses AVX-512 on AMD processors, MKL does not; but oneDNN has a larger overhead per call.
"""

MANY = 8
"""Number of rows from which a transposed copy of the matrices is worth its memory."""


class Uneven(NamedTuple):
    """Positions of one token per row, for rows of unequal length.

    Attributes:
        where: position of each row's token, (b,).
        row: row indices 0 to b - 1, (b,).
        bias: additive mask, (b, 1, 1, s): 0 for keys that the row may see, minus infinity for the others.
        begins: True for rows at position 0, (b, 1); None if no row is.
    """

    where: Tensor
    row: Tensor
    bias: Tensor
    begins: Tensor | None


class Place(NamedTuple):
    """Positions of the hidden states: `tokens` tokens in each of `rows` rows, starting at `position`.

    For rows of unequal length, `position` is the largest position.
    """

    position: int
    rows: int
    tokens: int
    rotation: tuple[Tensor, Tensor] | None
    uneven: Uneven | None = None


class TensorKit(Kit[Tensor, Place]):
    """Implements `Kit` for many rows, prompts and accelerators.

    Args:
        model: the model.
        turned: store transposed copies of the larger matrices, which oneDNN reads a quarter faster, and float32 copies
            of int8 matrices. It pays for many steps.
    """

    def __init__(self, model: Decoder, *, turned: bool = False) -> None:
        """Store the embedding tables."""
        super().__init__()
        self.turned = turned
        self.device, self.table = model.device, model.token_table.weight
        self.take(model.token_table)
        self.on_cpu = self.device.type == "cpu" and self.table.dtype == torch.float32
        self.positions: Tensor | None = None
        if model.position_table is not None:
            self.take(model.position_table)
            self.positions = model.position_table.weight
        elif model.config.positions == "sinusoidal":
            self.positions = model.get_buffer("sinusoids")
        self.rotary = model.get_buffer("rotary") if model.config.positions == "rotary" else None
        self.ngrams = model.ngrams
        if self.ngrams is not None:
            self.take(self.ngrams)

    def begin(
        self, rows: Sequence[Sequence[int]], position: int | Sequence[int], slot: LayerCache
    ) -> tuple[Tensor, Place]:
        """See `Kit.begin`."""
        ids = torch.tensor(rows, device=self.device)
        tokens, uneven = ids.shape[1], None
        if isinstance(position, int):
            here: slice | Tensor = slice(position, position + tokens)
            begins: bool | Tensor | None = not position
        else:
            uneven = self._uneven(position)
            position, here, begins = max(position), uneven.where[:, None], uneven.begins
        x = torch.embedding(self.table, ids)
        if self.positions is not None:
            x += self.positions[here]
        if self.ngrams is not None:
            x += _ngrams(self.ngrams, ids, slot["recent"], begins)
        rotation = None
        if self.rotary is not None:
            cos, sin = self.rotary[0, here], self.rotary[1, here]
            rotation = (cos, sin) if uneven is None else (cos[:, None], sin[:, None])
        return x.flatten(0, 1), Place(position, len(rows), tokens, rotation, uneven)

    def _uneven(self, positions: Sequence[int]) -> Uneven:
        """Return positions and mask for rows of unequal length."""
        where = torch.tensor(positions, device=self.device)
        hidden = torch.arange(max(positions) + 1, device=self.device) > where[:, None]
        bias = torch.zeros(hidden.shape, dtype=self.table.dtype, device=self.device)
        bias = bias.masked_fill_(hidden, float("-inf"))[:, None, None]
        begins = (where == 0)[:, None] if min(positions) == 0 else None
        return Uneven(where, torch.arange(len(positions), device=self.device), bias, begins)

    def end(self, x: Tensor) -> Tensor:
        """See `Kit.end`."""
        return x

    def last(self, x: Tensor, place: Place) -> Tensor:
        """See `Kit.last`."""
        return x if len(x) == place.rows else x.view(place.rows, place.tokens, -1)[:, -1]

    def add(self, x: Tensor, branch: Tensor) -> Tensor:
        """See `Kit.add`."""
        return x.add_(branch)

    def norm(self, layer: nn.Module | None) -> Map:
        """See `Kit.norm`."""
        if layer is None or type(layer) is nn.Identity:
            return _same
        if type(layer) is nn.LayerNorm:
            self.take(layer)
            shape, weight, bias, eps = layer.normalized_shape, layer.weight, layer.bias, layer.eps
            return lambda x: torch.layer_norm(x, shape, weight, bias, eps)
        if type(layer) is nn.RMSNorm:
            self.take(layer)
            return partial(torch.rms_norm, normalized_shape=layer.normalized_shape, weight=layer.weight, eps=layer.eps)
        raise Unknown(type(layer).__name__)

    def linear(self, layer: nn.Module | None) -> Map:
        """See `Kit.linear`."""
        if layer is None or type(layer) is nn.Identity:
            return _same
        if type(layer) is not nn.Linear and type(layer) is not Int8Linear:
            raise Unknown(type(layer).__name__)
        self.take(layer)
        bias, product = layer.bias, torch.ops.mkldnn._linear_pointwise.default
        if not (self.on_cpu and torch.backends.mkldnn.is_available()):  # type: ignore[no-untyped-call]
            return layer.forward
        if type(layer) is Int8Linear and not self.turned:
            few = layer.forward
            return lambda x: few(x) if len(x) <= FEW else product(x, layer.weight, bias, "none", [], "")
        weight, size = layer.weight, layer.weight.numel()
        if self.turned and MANY * size >= LARGE:
            weight = nn.Parameter(weight.detach().t().contiguous().t(), requires_grad=False)

        def apply(x: Tensor) -> Tensor:
            return F.linear(x, weight, bias) if len(x) * size < LARGE else product(x, weight, bias, "none", [], "")

        return apply

    def mlp(self, layer: MLP) -> Map:
        """See `Kit.mlp`."""
        up, down, kind = self.linear(layer.up), self.linear(layer.down), layer.kind
        return lambda x: down(activate(up(x), kind))

    def attention(self, layer: Attention, ends: bool) -> Callable[[Tensor, LayerCache, Place], Tensor]:
        """See `Kit.attention`."""
        project, out = self.linear(layer.qkv), self.linear(layer.out)
        query_norm, key_norm = self.norm(layer.query_norm), self.norm(layer.key_norm)
        heads, shared, width, scale = layer.n_head, layer.n_kv_head, layer.width, layer.scale
        grouped, attend = heads != shared, F.scaled_dot_product_attention

        def mix(x: Tensor, slot: LayerCache, place: Place) -> Tensor:
            position, rows, tokens, rotation, uneven = place
            parts = project(x).view(rows, tokens, heads + 2 * shared, width).transpose(1, 2)
            query, key, value = parts.split((heads, shared, shared), dim=1)  # type: ignore[no-untyped-call]
            query, key = query_norm(query), key_norm(key)
            if rotation is not None:
                query, key = rotate(query, rotation), rotate(key, rotation)
            seen = position + tokens
            keys, values = slot["keys"].narrow(2, 0, seen), slot["values"].narrow(2, 0, seen)
            bias = None
            if uneven is None:
                keys.narrow(2, position, tokens).copy_(key)
                values.narrow(2, position, tokens).copy_(value)
            else:
                bias = uneven.bias
                _scatter(key, keys, uneven, self.on_cpu)
                _scatter(value, values, uneven, self.on_cpu)
            if tokens == 1 and self.on_cpu:
                return out(_look_back(query, keys, values, scale, bias))
            if ends:
                query = query[:, :, -1:]
            causal = tokens > 1 and not ends
            joined = attend(query, keys, values, attn_mask=bias, is_causal=causal, scale=scale, enable_gqa=grouped)
            return out(joined.transpose(1, 2).reshape(-1, heads * width))

        return mix

    def mean(self, layer: CausalMean) -> Callable[[Tensor, LayerCache, Place], Tensor]:
        """See `Kit.mean`."""
        out = self.linear(layer.out)

        def mix(x: Tensor, slot: LayerCache, place: Place) -> Tensor:
            total = slot["total"]
            sums = x.view(place.rows, place.tokens, -1).cumsum(dim=1)
            if place.uneven is not None:
                where, begins = place.uneven.where, place.uneven.begins
                sums += total if begins is None else total.masked_fill(begins[:, None], 0.0)
                total.copy_(sums)
                return out(sums[:, 0] / (where + 1)[:, None])
            if place.position:
                sums += total
            total.copy_(sums[:, -1:])
            counts = torch.arange(place.position + 1, place.position + place.tokens + 1, device=x.device)
            return out((sums / counts[:, None]).flatten(0, 1))

        return mix


def _ngrams(layer: HashedNgrams, ids: Tensor, recent: Tensor, begins: bool | Tensor | None) -> Tensor:
    """Return the sum of each token's n-gram embeddings, (b, t, c), and update `recent`, the cache of previous tokens.

    `begins`: True if no tokens come before these; one bool for all rows, or (b, 1).
    """
    before = recent
    if isinstance(begins, Tensor):
        before = recent.masked_fill(begins, -1)
    elif begins:
        before = torch.full_like(recent, -1)
    known = torch.cat((before, ids), dim=1)
    recent.copy_(known[:, 1 - layer.longest :])
    rows = ngram_rows(known, layer.longest, len(layer.weight)).flatten(0, 1)
    return F.embedding_bag(rows, layer.weight, mode="sum").view(*ids.shape, -1)


def _scatter(new: Tensor, room: Tensor, uneven: Uneven, on_cpu: bool) -> None:
    """Write each row's new keys or values, (b, g, 1, d), to its position in the cache `room`, (b, g, s, d).

    On a CPU, NumPy uses one thread; PyTorch wakes a second one. On a busy machine: 6 instead of 140 microseconds.
    """
    if on_cpu:
        room.numpy()[uneven.row.numpy(), :, uneven.where.numpy()] = new[:, :, 0].numpy()
    else:
        room[uneven.row, :, uneven.where] = new[:, :, 0]


def _look_back(query: Tensor, keys: Tensor, values: Tensor, scale: float, bias: Tensor | None) -> Tensor:
    """Compute attention for one query per row, (b, h, 1, d) to (b, h d); `bias` is added to the scores, (b, g, h/g, s).

    NumPy's matrix-vector products have less overhead than PyTorch's and read memory faster.
    """
    rows, shared, _, width = keys.shape
    scores = torch.from_numpy(np.matmul(query.mul(scale).view(rows, shared, -1, width).numpy(), keys.mT.numpy()))
    if bias is not None:
        scores += bias
    return torch.from_numpy(np.matmul(scores.softmax(dim=-1).numpy(), values.numpy())).view(rows, -1)


def _same(x: Tensor) -> Tensor:
    return x
