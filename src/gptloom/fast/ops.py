"""What a kit of operations offers to `stepping`, which knows their order."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from torch import Tensor, nn

from gptloom.fast.int8 import Int8Linear
from gptloom.model.attention import Attention
from gptloom.model.cache import LayerCache
from gptloom.model.layers import MLP, CausalMean
from gptloom.model.ngram import HashedNgrams

X = TypeVar("X")
"""What flows down the line: vectors of one row or of many."""
P = TypeVar("P")
"""Where in the text they stand."""


class Unknown(Exception):
    """A kit has no operation for a part of a model."""


class Kit(ABC, Generic[X, P]):
    """A model's layers as plain functions.

    Each method that takes a layer raises `Unknown` where it is none that the kit knows.

    Attributes:
        taken: the ids (`id`) of all parameters that the functions use.
    """

    def __init__(self) -> None:
        """Nothing taken yet."""
        self.taken: set[int] = set()

    @abstractmethod
    def begin(self, rows: Sequence[Sequence[int]], position: Any, slot: LayerCache) -> tuple[X, P]:
        """The embeddings of some ids of each row.

        Args:
            rows: the ids, equally many of each row.
            position: of the first of them, an int; or a list with one for each row, which then has one id (only
                `TensorKit`).
            slot: that of the n-grams, if there are any.
        """

    @abstractmethod
    def end(self, x: X) -> Tensor:
        """The last vectors as a tensor of the caller's own, (b, v)."""

    @abstractmethod
    def last(self, x: X, place: P) -> X:
        """Of each row only the last token's vector."""

    @abstractmethod
    def add(self, x: X, branch: X) -> X:
        """The sum; `x` is not needed any more."""

    @abstractmethod
    def norm(self, layer: nn.Module | None) -> Callable[[X], X]:
        """A LayerNorm, an RMSNorm, or nothing."""

    @abstractmethod
    def linear(self, layer: nn.Module | None) -> Callable[[X], X]:
        """A linear layer, or nothing."""

    @abstractmethod
    def mlp(self, layer: MLP) -> Callable[[X], X]:
        """Widen, activate, narrow."""

    @abstractmethod
    def attention(self, layer: Attention, ends: bool) -> Callable[[X, LayerCache, P], X]:
        """Attention to all that the slot holds, which then holds the new tokens too.

        `ends`: the results for each row's last token are all that is wanted.
        """

    @abstractmethod
    def mean(self, layer: CausalMean) -> Callable[[X, LayerCache, P], X]:
        """The mean of all that the slot has summed up, and of the new tokens."""

    def take(self, layer: nn.Embedding | nn.Linear | nn.LayerNorm | nn.RMSNorm | HashedNgrams | Int8Linear) -> None:
        """Note that a layer's own parameters are used."""
        numbers = (layer.numbers, layer.scale) if isinstance(layer, Int8Linear) else (layer.weight,)
        self.taken |= {id(one) for one in (*numbers, getattr(layer, "bias", None))}
