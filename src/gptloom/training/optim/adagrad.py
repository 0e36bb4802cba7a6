"""AdaGrad for embedding tables with sparse gradients."""

from typing import Any

import torch
from torch import Tensor

from gptloom.config.run import TrainConfig
from gptloom.fast.flat import load_groups, packed_groups, unfit
from gptloom.model.ngram import HashedNgrams

TINY = 1e-20
"""Added to a row's sum of squares, to avoid division by zero."""


class RowAdagrad:
    """AdaGrad (Duchi et al. 2011) with one sum of mean squares per row.

    row -= lr * gradient / sqrt(sum over steps of mean(gradient ** 2)). A row learns fast at first, and more slowly the
    more often it occurs, as a running count would. Gradients are sparse: rows that are not in the batch cost nothing.
    The state of a row is one number.

    Args:
        name: name of the parameter.
        table: the layer; on a CPU it is set to sparse gradients.
        config: `table_learning_rate` is used.
    """

    def __init__(self, name: str, table: HashedNgrams, config: TrainConfig) -> None:
        """Start with sums of 0."""
        self.name, self.weight = name, table.weight
        table.sparse = table.weight.device.type == "cpu"
        self.squares = torch.zeros(len(table.weight), dtype=table.weight.dtype, device=table.weight.device)
        rate = config.table_learning_rate
        self.param_groups: list[dict[str, Any]] = [
            {"params": [table.weight], "param_names": [name], "lr": rate, "initial_lr": rate, "weight_decay": 0.0}
        ]

    def zero_grad(self) -> None:
        """Reset the gradient."""
        self.weight.grad = None

    def gradients(self) -> list[Tensor]:
        """Return the gradients of the rows in the batch; they may be changed in place."""
        grad = self.weight.grad
        if grad is None:
            return []
        if not grad.is_sparse:
            return [grad]
        if not grad.is_coalesced():
            self.weight.grad = grad = grad.coalesce()
        return [grad.values()]

    @torch.no_grad()
    def step(self) -> None:
        """Update the rows in the batch."""
        grad = self.weight.grad
        if grad is None:
            return
        if grad.is_sparse:
            grad = grad.coalesce()
            rows, values = grad.indices()[0], grad.values()
        else:
            rows, values = None, grad
        squares = self.squares if rows is None else self.squares[rows]
        squares = squares + values.square().mean(1)
        change = values * (-self.param_groups[0]["lr"] / (squares + TINY).sqrt())[:, None]
        if rows is None:
            self.squares.copy_(squares)
            self.weight.add_(change)
        else:
            self.squares[rows] = squares
            self.weight.index_add_(0, rows, change)

    def state_dict(self) -> dict[str, Any]:
        """Return the rows' sums, in torch's format."""
        return {"state": {0: {"squares": self.squares}}, "param_groups": packed_groups(self.param_groups)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the rows' sums.

        Raises:
            ValueError: a tensor has an unknown kind or another shape.
        """
        for memory in state_dict["state"].values():
            for kind, tensor in memory.items():
                if kind != "squares" or tensor.shape != self.squares.shape:
                    raise unfit(f"{kind}/{self.name}")
        self.squares.zero_()
        for memory in state_dict["state"].values():
            self.squares.copy_(memory["squares"])
        load_groups(self.param_groups, state_dict["param_groups"])
