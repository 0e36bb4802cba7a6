"""The recurrent models in plain code: a hidden state of one vector, updated at every token."""

import torch
from torch import Tensor, nn


class RNNLayer(nn.Module):
    """The simple RNN (Elman 1990): the new hidden state is the tanh of a linear map of input and hidden state."""

    def __init__(self, width: int) -> None:
        """One matrix for the input, one for the hidden state."""
        super().__init__()
        self.input = nn.Linear(width, width)
        self.hidden = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(b, t, width) to (b, t, width), one token after the other: the steps cannot run in parallel."""
        h = torch.zeros_like(x[:, 0])
        found = []
        for t in range(x.shape[1]):
            h = torch.tanh(self.input(x[:, t]) + self.hidden(h))
            found.append(h)
        return torch.stack(found, dim=1)


class LSTMLayer(nn.Module):
    """LSTM (Hochreiter and Schmidhuber 1997): a second state, the cell, is only scaled and added to.

    So gradients vanish more slowly.
    """

    def __init__(self, width: int) -> None:
        """The matrices hold input gate, forget gate, candidate and output gate, in this order."""
        super().__init__()
        self.input = nn.Linear(width, 4 * width)
        self.hidden = nn.Linear(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        """(b, t, width) to (b, t, width)."""
        h = c = torch.zeros_like(x[:, 0])
        found = []
        for t in range(x.shape[1]):
            write, keep, candidate, show = (self.input(x[:, t]) + self.hidden(h)).chunk(4, dim=-1)
            c = torch.sigmoid(keep) * c + torch.sigmoid(write) * torch.tanh(candidate)
            h = torch.sigmoid(show) * torch.tanh(c)
            found.append(h)
        return torch.stack(found, dim=1)


class GRULayer(nn.Module):
    """GRU (Cho et al. 2014): one state and two gates.

    The reset gate scales the hidden state's part of the candidate; the update gate is the share of the old state in the
    new one.
    """

    def __init__(self, width: int) -> None:
        """The matrices hold reset gate, update gate and candidate, in this order."""
        super().__init__()
        self.input = nn.Linear(width, 3 * width)
        self.hidden = nn.Linear(width, 3 * width)

    def forward(self, x: Tensor) -> Tensor:
        """(b, t, width) to (b, t, width)."""
        h = torch.zeros_like(x[:, 0])
        found = []
        for t in range(x.shape[1]):
            reset_x, update_x, new_x = self.input(x[:, t]).chunk(3, dim=-1)
            reset_h, update_h, new_h = self.hidden(h).chunk(3, dim=-1)
            update = torch.sigmoid(update_x + update_h)
            candidate = torch.tanh(new_x + torch.sigmoid(reset_x + reset_h) * new_h)
            h = (1 - update) * candidate + update * h
            found.append(h)
        return torch.stack(found, dim=1)


class RecurrentModel(nn.Module):
    """Token table, recurrent layers, and a linear layer for the next token.

    It needs no position embeddings, because the layers read the tokens in order.
    """

    def __init__(self, vocab_size: int, width: int, layers: list[nn.Module]) -> None:
        """Stack any of the layers above."""
        super().__init__()
        self.token_table = nn.Embedding(vocab_size, width)
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(width, vocab_size)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits (b, t, vocab_size) from ids (b, t)."""
        logits: Tensor = self.head(self.layers(self.token_table(ids)))
        return logits
