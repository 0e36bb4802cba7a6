"""The recurrent models in the plainest code: a memory of one vector, rewritten at every token."""

import torch
from torch import Tensor, nn


class RNNLayer(nn.Module):
    """The simplest memory (Elman 1990): what is read and what is remembered are mixed, and squashed."""

    def __init__(self, width: int) -> None:
        """One matrix for what comes in, one for what is remembered."""
        super().__init__()
        self.input = nn.Linear(width, width)
        self.hidden = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """From (b, t, width) to the same, one token after the other: no two of them can be computed at once."""
        h = torch.zeros_like(x[:, 0])
        found = []
        for t in range(x.shape[1]):
            h = torch.tanh(self.input(x[:, t]) + self.hidden(h))
            found.append(h)
        return torch.stack(found, dim=1)


class LSTMLayer(nn.Module):
    """A memory beside the output that is only added to and scaled (Hochreiter and Schmidhuber 1997), so that gradients last longer."""

    def __init__(self, width: int) -> None:
        """The matrices hold input gate, forget gate, candidate and output gate, in this order."""
        super().__init__()
        self.input = nn.Linear(width, 4 * width)
        self.hidden = nn.Linear(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        """From (b, t, width) to the same."""
        h = c = torch.zeros_like(x[:, 0])
        found = []
        for t in range(x.shape[1]):
            write, keep, candidate, show = (self.input(x[:, t]) + self.hidden(h)).chunk(4, dim=-1)
            c = torch.sigmoid(keep) * c + torch.sigmoid(write) * torch.tanh(candidate)
            h = torch.sigmoid(show) * torch.tanh(c)
            found.append(h)
        return torch.stack(found, dim=1)


class GRULayer(nn.Module):
    """One vector, two gates (Cho et al.

    2014): how much of the past goes into the candidate, and how much of it stays.
    """

    def __init__(self, width: int) -> None:
        """The matrices hold reset gate, update gate and candidate, in this order."""
        super().__init__()
        self.input = nn.Linear(width, 3 * width)
        self.hidden = nn.Linear(width, 3 * width)

    def forward(self, x: Tensor) -> Tensor:
        """From (b, t, width) to the same."""
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
    """What a token is, layers that remember, and a guess at the next token.

    There are no positions: order is in the reading.
    """

    def __init__(self, vocab_size: int, width: int, layers: list[nn.Module]) -> None:
        """Put any of the layers above on one another."""
        super().__init__()
        self.token_table = nn.Embedding(vocab_size, width)
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(width, vocab_size)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits (b, t, vocab_size) from ids (b, t)."""
        logits: Tensor = self.head(self.layers(self.token_table(ids)))
        return logits
