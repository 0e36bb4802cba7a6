"""What one call carries (`Context`), what a request keeps between calls (`State`), and what a call shows (`Trace`)."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Slot = dict[str, Tensor]
"""One layer's memory: named tensors whose first axis is the batch. Only the layer that made it knows the names."""


class State:
    """The memory of a batch of requests. The model makes it, the caller owns it, and each row has its own length.

    Args:
        slots: one per layer, from that layer's `init_slot`.
        batch: rows.
        capacity: most tokens a row can hold.
    """

    def __init__(self, slots: list[Slot], batch: int, capacity: int) -> None:
        """Start with empty rows."""
        self.slots, self.capacity = slots, capacity
        # Plain numbers: what shapes and masks follow from must not wait for a device.
        self.lengths = [0] * batch
        self.views: dict[int, list[Slot]] = {}

    def advance(self, counts: Sequence[int]) -> None:
        """Count the tokens that a call has added to each row."""
        self.lengths = [length + count for length, count in zip(self.lengths, counts, strict=True)]

    def clear(self) -> None:
        """Forget all.

        What the tensors still hold means nothing to the layers: they look at what lies within a row's length.
        """
        self.lengths = [0] * len(self.lengths)

    def take(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order; a row may be dropped or repeated (beam search, finished requests)."""
        index = torch.as_tensor(rows)
        self.lengths, self.views = [self.lengths[row] for row in rows], {}
        self.slots = [{name: tensor[index.to(tensor.device)] for name, tensor in slot.items()} for slot in self.slots]

    def put(self, rows: Sequence[int], other: "State") -> None:
        """Replace these rows by the rows of another state of the same model, whose capacity is at most this one's."""
        index = torch.as_tensor(rows)
        for row, length in zip(rows, other.lengths, strict=True):
            self.lengths[row] = length
        for mine, theirs in zip(self.slots, other.slots, strict=True):
            for name, tensor in mine.items():
                new = theirs[name]
                corner: tuple[Tensor | slice, ...] = tuple(slice(0, size) for size in new.shape[1:])
                tensor[(index.to(tensor.device), *corner)] = new

    def move(self, row: int, place: int) -> None:
        """Copy a row's memory to another place, whose own is lost."""
        self.lengths[place] = self.lengths[row]
        for slot in self.slots:
            for tensor in slot.values():
                tensor[place].copy_(tensor[row])

    def part(self, start: int, stop: int) -> "State":
        """The rows from `start` to `stop` - 1 as a state of their own: tensors are shared, lengths are copied."""
        slots = [{name: tensor[start:stop] for name, tensor in slot.items()} for slot in self.slots]
        part = State(slots, stop - start, self.capacity)
        part.lengths = self.lengths[start:stop]
        return part

    def slots_of(self, row: int) -> list[Slot]:
        """One row's memory, (1, ...): views, which stay the same objects until `take` makes new tensors."""
        if row not in self.views:
            self.views[row] = self.part(row, row + 1).slots
        return self.views[row]


@dataclass
class Trace:
    """What happened inside one call. It is filled on request, and asking for it selects the explicit attention path."""

    attention: list[Float[Tensor, "b h t s"]] = field(default_factory=list)
    """Attention weights, a tensor per layer; each row of each head sums to 1."""
    stream: list[Float[Tensor, "b t c"]] = field(default_factory=list)
    """The embeddings, then the residual stream after each block."""
    cross: list[Float[Tensor, "b h t s"]] = field(default_factory=list)
    """Weights of the attention on the encoder's memory, a tensor per layer."""


@dataclass(frozen=True)
class Memory:
    """What an encoder leaves for a decoder to look at.

    Attributes:
        vectors: one for each place of the source.
        seen: which places are not padding.
    """

    vectors: Float[Tensor, "b s c"]
    seen: Bool[Tensor, "b 1 1 s"]


@dataclass
class Context:
    """Everything that one call needs besides the ids. The caller gives the first four; the model fills in the rest.

    Attributes:
        state: memory of the tokens before these, extended by this call.
        counts: how many of the ids in each row are real, the rest being padding on the right (default: all).
        trace: to be filled with what happened inside.
        memory: what an encoder has read, for layers with cross-attention; a state that holds it already needs it no
            more.
        positions: (t,) where every row begins alike, else (b, t).
        mask: (b, 1, t, s), or (b, 1, 1, s) for all queries alike: which keys a query may see; None where `causal` says
            enough.
        causal: the queries are all the keys there are, so the plain causal mask applies.
        rotation: cosines and sines of the positions for rotary attention.
    """

    state: State | None = None
    counts: Sequence[int] | None = None
    trace: Trace | None = None
    memory: Memory | None = None
    positions: Int[Tensor, "*b t"] = field(init=False)
    mask: Bool[Tensor, "b 1 _ s"] | None = field(init=False, default=None)
    causal: bool = field(init=False, default=True)
    rotation: tuple[Tensor, Tensor] | None = field(init=False, default=None)

    def place(self, tokens: int, device: torch.device) -> None:
        """Find the positions of the next `tokens` tokens, and which earlier ones each may see."""
        steps = torch.arange(tokens, device=device)
        if self.state is None:
            self.positions = steps
            return
        lengths = self.state.lengths
        first, last = min(lengths), max(lengths)
        if first == last and last + tokens <= self.state.capacity:
            self.positions = steps + first
            self.causal = first == 0
            if self.causal or tokens == 1:
                return
        else:
            self.positions = torch.tensor(lengths, device=device)[:, None] + steps
            self.causal = False
        keys = torch.arange(min(last + tokens, self.state.capacity), device=device)
        self.mask = (keys <= self.positions.expand(len(lengths), tokens)[..., None])[:, None]

    def open(self, seen: Bool[Tensor, "b s"]) -> None:
        """Let every position see every other that is no padding: an encoder's view."""
        self.positions = torch.arange(seen.shape[1], device=seen.device)
        self.causal = False
        self.mask = None if bool(seen.all()) else seen[:, None, None]

    @property
    def ragged(self) -> bool:
        """The rows begin at different lengths."""
        return self.positions.ndim == 2
