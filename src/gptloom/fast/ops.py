"""`Kit`: interface of the operations from which `fast/decode.py` builds a decoder step."""

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
"""Hidden states of one row or of many rows."""
P = TypeVar("P")
"""Positions of the hidden states."""


class Unknown(Exception):
    """The fast path does not support a model, or a kit does not support a part of it."""


class Kit(ABC, Generic[X, P]):
    """Returns a model's layers as plain functions.

    Each method that takes a layer raises `Unknown` if the kit does not support it.

    Attributes:
        taken: `id` of each parameter that the functions use.
    """

    def __init__(self) -> None:
        """Start without parameters."""
        self.taken: set[int] = set()

    @abstractmethod
    def begin(self, rows: Sequence[Sequence[int]], position: Any, slot: LayerCache) -> tuple[X, P]:
        """Return the embeddings of the next ids, and their positions.

        Args:
            rows: ids of each row; the same number for all rows.
            position: position of the first id. Or a list with one position per row; each row then has one id (only
                `TensorKit`).
            slot: cache of the n-grams, if the model has any.
        """

    @abstractmethod
    def end(self, x: X) -> Tensor:
        """Return the final result as a tensor (b, v) that belongs to the caller."""

    @abstractmethod
    def last(self, x: X, place: P) -> X:
        """Return the hidden state of each row's last token."""

    @abstractmethod
    def add(self, x: X, branch: X) -> X:
        """Return x + branch; may overwrite `x`."""

    @abstractmethod
    def norm(self, layer: nn.Module | None) -> Callable[[X], X]:
        """Return the function of a LayerNorm or RMSNorm; the identity for None or `nn.Identity`."""

    @abstractmethod
    def linear(self, layer: nn.Module | None) -> Callable[[X], X]:
        """Return the function of a linear layer; the identity for None or `nn.Identity`."""

    @abstractmethod
    def mlp(self, layer: MLP) -> Callable[[X], X]:
        """Return the function of an MLP."""

    @abstractmethod
    def attention(self, layer: Attention, ends: bool) -> Callable[[X, LayerCache, P], X]:
        """Return the function of attention: it adds the new tokens to the cache and attends to all tokens in it.

        `ends`: only the results of each row's last token are needed.
        """

    @abstractmethod
    def mean(self, layer: CausalMean) -> Callable[[X, LayerCache, P], X]:
        """Return the function of a causal mean: the mean of all tokens in the cache and the new ones."""

    def take(self, layer: nn.Embedding | nn.Linear | nn.LayerNorm | nn.RMSNorm | HashedNgrams | Int8Linear) -> None:
        """Record that a layer's parameters are used."""
        numbers = (layer.numbers, layer.scale) if isinstance(layer, Int8Linear) else (layer.weight,)
        self.taken |= {id(one) for one in (*numbers, getattr(layer, "bias", None))}
