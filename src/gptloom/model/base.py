"""The interface of every model: ids in, logits out."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gptloom.config.model import ModelConfig
from gptloom.model.cache import Cache, Context


class LanguageModel(nn.Module, ABC):
    """Base class of all models.

    Attributes:
        config: the model's configuration.
        token_table: the token embedding, (ids, n_embd); an encoder has one id more than the vocabulary, for masks.
    """

    config: ModelConfig
    token_table: nn.Embedding

    @abstractmethod
    def forward_hidden(self, ids: Int[Tensor, "b t"], context: Context | None = None) -> Float[Tensor, "b t c"]:
        """Return the final hidden states, the input of `unembed`.

        Args:
            ids: token ids. With a cache, they continue the cached tokens and are added to it.
            context: cache, row counts, trace and encoder output; None means no cache and no trace.

        Raises:
            ValueError: there are more tokens than the context window or the cache can hold.
        """

    @abstractmethod
    def unembed(self, hidden: Float[Tensor, "*n c"]) -> Float[Tensor, "*n v"]:
        """Map hidden states to logits; the dtype stays the same."""

    @abstractmethod
    def init_cache(self, batch: int, length: int) -> Cache:
        """Return an empty cache for `batch` rows of up to `length` tokens."""

    def for_rows(self, rows: Sequence[int]) -> "LanguageModel":
        """Return the model for a batch of these rows: itself, unless each row has its own source (`Conditioned`)."""
        return self

    def forward(self, ids: Int[Tensor, "b t"]) -> Float[Tensor, "b t v"]:
        """Return the logits at every position."""
        return self.unembed(self.forward_hidden(ids))

    @property
    def window(self) -> int | None:
        """Longest context, in tokens; None if there is no limit."""
        return self.config.block_size

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.token_table.weight.device

    def parameter_count(self) -> int:
        """Number of parameters; tied weights count once."""
        return sum(p.numel() for p in self.parameters())


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch a model in training mode, with all its modules, to evaluation mode, and back at the end."""
    if not model.training:  # avoid a walk over all modules
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
