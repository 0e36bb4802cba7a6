"""What training, generation and probing ask of any model."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gptloom.config.model import ModelConfig
from gptloom.model.cache import Cache, Context


class LanguageModel(nn.Module, ABC):
    """Ids in, logits out.

    Attributes:
        config: the shape.
        token_table: what each id looks like to the model.
    """

    config: ModelConfig
    token_table: nn.Embedding

    @abstractmethod
    def forward_hidden(self, ids: Int[Tensor, "b t"], context: Context | None = None) -> Float[Tensor, "b t c"]:
        """The last hidden vectors, ready for `unembed`.

        Args:
            ids: token ids. With a cache they continue it, and the cache then holds them too.
            context: cache, row counts, trace and memory; None means a fresh, uncached, untraced call.

        Raises:
            ValueError: more tokens than the model's window, or than the cache has room for.
        """

    @abstractmethod
    def unembed(self, hidden: Float[Tensor, "*n c"]) -> Float[Tensor, "*n v"]:
        """Logits from hidden vectors, in the same floating-point type."""

    @abstractmethod
    def init_cache(self, batch: int, length: int) -> Cache:
        """Empty memory for `batch` rows of up to `length` tokens, on the model's device and in its type."""

    def for_rows(self, rows: Sequence[int]) -> "LanguageModel":
        """The model for a batch of these rows; only one that has read a source for each row makes a difference."""
        return self

    def forward(self, ids: Int[Tensor, "b t"]) -> Float[Tensor, "b t v"]:
        """Logits at every position, never fewer."""
        return self.unembed(self.forward_hidden(ids))

    @property
    def window(self) -> int | None:
        """The most tokens that it can look back on; None where there is no end to it."""
        return self.config.block_size

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.token_table.weight.device

    def parameter_count(self) -> int:
        """Number of trainable numbers; a tied head counts once."""
        return sum(p.numel() for p in self.parameters())


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off, and back to what it was afterwards."""
    if not model.training:  # the usual case, and worth not walking through the model for every token
        yield
        return
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
