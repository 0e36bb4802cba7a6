"""State of a forward pass: `Context` (one call), `Cache` (between calls) and `Trace` (recorded activations).

The cache belongs to the caller. A model holds no state between two calls.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

LayerCache = dict[str, Tensor]
"""One layer's cache: named tensors whose first axis is the batch. Each layer chooses its own names."""


class Cache:
    """Cache of a batch of sequences: keys and values, or recurrent states. Each row has its own length.

    Args:
        layers: the caches of the layers, made by their `init_cache`: one per block, and one for n-grams.
        batch: number of rows.
        capacity: maximum number of tokens in a row.
    """

    def __init__(self, layers: list[LayerCache], batch: int, capacity: int) -> None:
        """Start with empty rows."""
        self.layers, self.capacity = layers, capacity
        # Python integers: shapes and masks depend on them, and must not wait for the device.
        self.lengths = [0] * batch
        self.views: dict[int, list[LayerCache]] = {}

    def advance(self, counts: Sequence[int]) -> None:
        """Add to each row's length the number of tokens that a call has processed."""
        self.lengths = [length + count for length, count in zip(self.lengths, counts, strict=True)]

    def clear(self) -> None:
        """Set all lengths to 0. Layers ignore tensor entries beyond a row's length."""
        self.lengths = [0] * len(self.lengths)

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows in this order; a row may occur several times (beam search) or not at all."""
        index = torch.as_tensor(rows)
        self.lengths, self.views = [self.lengths[row] for row in rows], {}
        self.layers = [
            {name: tensor[index.to(tensor.device)] for name, tensor in layer.items()} for layer in self.layers
        ]

    def write(self, rows: Sequence[int], other: "Cache") -> None:
        """Overwrite these rows with the rows of another cache of the same model and at most the same capacity."""
        index = torch.as_tensor(rows)
        for row, length in zip(rows, other.lengths, strict=True):
            self.lengths[row] = length
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            for name, tensor in mine.items():
                new = theirs[name]
                corner: tuple[Tensor | slice, ...] = tuple(slice(0, size) for size in new.shape[1:])
                tensor[(index.to(tensor.device), *corner)] = new

    def move(self, row: int, place: int) -> None:
        """Copy row `row` to row `place`, which is overwritten."""
        self.lengths[place] = self.lengths[row]
        for layer in self.layers:
            for tensor in layer.values():
                tensor[place].copy_(tensor[row])

    def part(self, start: int, stop: int) -> "Cache":
        """The rows from `start` to `stop` - 1 as a cache: tensors are shared, lengths are copied."""
        layers = [{name: tensor[start:stop] for name, tensor in layer.items()} for layer in self.layers]
        part = Cache(layers, stop - start, self.capacity)
        part.lengths = self.lengths[start:stop]
        return part

    def layers_of(self, row: int) -> list[LayerCache]:
        """Views of one row, (1, ...); they remain the same objects until `select` creates new tensors."""
        if row not in self.views:
            self.views[row] = self.part(row, row + 1).layers
        return self.views[row]


@dataclass
class Trace:
    """Activations that a call records on request. A trace switches off the fused attention kernel."""

    attention: list[Float[Tensor, "b h t s"]] = field(default_factory=list)
    """Self-attention weights, one tensor per layer; each row of each head sums to 1."""
    stream: list[Float[Tensor, "b t c"]] = field(default_factory=list)
    """The embeddings, then the residual stream after each block."""
    cross: list[Float[Tensor, "b h t s"]] = field(default_factory=list)
    """Cross-attention weights, one tensor per layer."""


@dataclass(frozen=True)
class EncoderOutput:
    """Output of the encoder, which the decoder attends to.

    Attributes:
        vectors: one vector per position of the source.
        seen: True for positions that are not padding.
    """

    vectors: Float[Tensor, "b s c"]
    seen: Bool[Tensor, "b 1 1 s"]


@dataclass
class Context:
    """Arguments of one call besides the ids. The caller sets the first four fields; the model sets the others.

    Attributes:
        cache: the tokens before these; the call adds its own.
        counts: number of real tokens in each row; the rest is padding on the right (default: all are real).
        trace: receives the activations, or None.
        memory: the encoder's output, for cross-attention. It is not needed if the cache already has its keys and
            values.
        positions: (t,) if all rows start at the same position, else (b, t).
        mask: (b, 1, t, s), or (b, 1, 1, s) for all queries: True where a query may attend to a key; None if `causal` is
            enough.
        causal: there are as many keys as queries, so the plain causal mask applies.
        rotation: cosines and sines of the positions, for rotary embeddings.
    """

    cache: Cache | None = None
    counts: Sequence[int] | None = None
    trace: Trace | None = None
    memory: EncoderOutput | None = None
    positions: Int[Tensor, "*b t"] = field(init=False)
    mask: Bool[Tensor, "b 1 _ s"] | None = field(init=False, default=None)
    causal: bool = field(init=False, default=True)
    rotation: tuple[Tensor, Tensor] | None = field(init=False, default=None)

    def place(self, tokens: int, device: torch.device) -> None:
        """Set the positions of the next `tokens` tokens and their causal mask."""
        steps = torch.arange(tokens, device=device)
        if self.cache is None:
            self.positions = steps
            return
        lengths = self.cache.lengths
        first, last = min(lengths), max(lengths)
        if first == last and last + tokens <= self.cache.capacity:
            self.positions = steps + first
            self.causal = first == 0
            if self.causal or tokens == 1:
                return
        else:
            self.positions = torch.tensor(lengths, device=device)[:, None] + steps
            self.causal = False
        keys = torch.arange(min(last + tokens, self.cache.capacity), device=device)
        self.mask = (keys <= self.positions.expand(len(lengths), tokens)[..., None])[:, None]

    def open(self, seen: Bool[Tensor, "b s"]) -> None:
        """Set an encoder's positions and mask: every position sees all others except padding."""
        self.positions = torch.arange(seen.shape[1], device=seen.device)
        self.causal = False
        self.mask = None if bool(seen.all()) else seen[:, None, None]

    @property
    def ragged(self) -> bool:
        """True if the rows start at different positions."""
        return self.positions.ndim == 2
