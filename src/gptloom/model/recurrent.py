"""Recurrent language models: RNN, LSTM and GRU."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gptloom.config.model import ModelConfig
from gptloom.model.base import LanguageModel
from gptloom.model.cache import Cache, Context
from gptloom.model.init import initialise

LAYERS: dict[str, type[nn.RNN] | type[nn.LSTM] | type[nn.GRU]] = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


class Recurrent(LanguageModel):
    """Token embedding, recurrent layers, linear head.

    Sources: RNN (Elman 1990), LSTM (Hochreiter and Schmidhuber 1997), GRU (Cho et al. 2014). The cache has the same
    size for any length, so there is no context window. `interpret.statistics.gradient_by_distance` measures how far
    back the model remembers.

    Args:
        config: uses architecture, n_layer, n_embd, dropout (between layers and before the head), embd_dropout, head,
            head_bias and init.
    """

    def __init__(self, config: ModelConfig) -> None:
        """Build the layers and draw their weights; the recurrent layers keep PyTorch's."""
        super().__init__()
        self.config = config
        self.token_table = nn.Embedding(config.vocab_size, config.n_embd)
        self.embd_dropout = nn.Dropout(config.dropout if config.embd_dropout is None else config.embd_dropout)
        between = config.dropout if config.n_layer > 1 else 0.0
        self.layers = LAYERS[config.architecture](
            config.n_embd, config.n_embd, config.n_layer, batch_first=True, dropout=between
        )
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=config.head_bias)
        if config.head == "tied":
            self.head.weight = self.token_table.weight
        initialise(self, config)

    @property
    def window(self) -> None:
        """None: there is no limit."""
        return None

    def forward_hidden(self, ids: Int[Tensor, "b t"], context: Context | None = None) -> Float[Tensor, "b t c"]:
        """Return the last layer's output; with a cache, start from its states and store the new ones."""
        context = context or Context()
        x = self.embd_dropout(self.token_table(ids))
        if context.cache is None:
            out, _ = self.layers(x)
        else:
            out = self._continue(x, context.cache, context.counts or [ids.shape[1]] * len(ids))
        if context.trace is not None:
            context.trace.stream += [x.detach(), out.detach()]
        return self.dropout(out)  # type: ignore[no-any-return]

    def unembed(self, hidden: Float[Tensor, "*n c"]) -> Float[Tensor, "*n v"]:
        """Map hidden states to logits."""
        return self.head(hidden)  # type: ignore[no-any-return]

    def init_cache(self, batch: int, length: int) -> Cache:
        """Zero states, (b, n_layer, n_embd). Their size does not depend on `length`."""
        zeros = self.token_table.weight.new_zeros(batch, self.config.n_layer, self.config.n_embd)
        names = ("hidden", "cell") if self.config.architecture == "lstm" else ("hidden",)
        return Cache([{name: zeros.clone() for name in names}], batch, length)

    def _continue(self, x: Tensor, cache: Cache, counts: Sequence[int]) -> Tensor:
        """Run from the cached states and store the new ones.

        Padding on the right is skipped. A row without tokens keeps its state.
        """
        layer = cache.layers[0]
        rows = [row for row, count in enumerate(counts) if count]
        out = x.new_zeros(*x.shape[:2], self.config.n_embd)
        if rows:
            index = torch.tensor(rows, device=x.device)
            lengths = torch.tensor([counts[row] for row in rows])
            packed = nn.utils.rnn.pack_padded_sequence(x[index], lengths, batch_first=True, enforce_sorted=False)
            begun = torch.tensor([cache.lengths[row] > 0 for row in rows], device=x.device)[:, None, None]
            before = [torch.where(begun, tensor[index], 0.0).transpose(0, 1).contiguous() for tensor in layer.values()]
            outputs, after = self.layers(packed, tuple(before) if len(before) == 2 else before[0])
            out[index] = nn.utils.rnn.pad_packed_sequence(outputs, batch_first=True, total_length=x.shape[1])[0]
            for name, tensor in zip(layer, after if isinstance(after, tuple) else (after,), strict=True):
                layer[name][index] = tensor.transpose(0, 1)
        cache.advance(counts)
        return out
