"""AdaGrad for tables of which a batch touches a few rows."""

from typing import Any

import torch
from torch import Tensor

from gptloom.config.run import TrainConfig
from gptloom.fast.flat import load_groups, packed_groups, unfit
from gptloom.model.ngram import HashedNgrams

TINY = 1e-20
"""Added to a row's sum of squares, so that a gradient of zeros divides by something."""


class RowAdagrad:
    """AdaGrad (Duchi et al. 2011) with one sum of mean squares a row.

    row -= lr * gradient / sqrt(sum over steps of mean(gradient ** 2)). A row learns fast while it is new and settles
    as it is met more often, as a count would. Gradients are sparse: rows that a batch has not looked up cost nothing,
    and what is remembered of a row is one number.

    Args:
        name: the parameter's.
        table: the layer; it is told to make sparse gradients, on a CPU.
        config: `table_learning_rate`.
    """

    def __init__(self, name: str, table: HashedNgrams, config: TrainConfig) -> None:
        """Nothing is remembered yet."""
        self.name, self.weight = name, table.weight
        table.sparse = table.weight.device.type == "cpu"
        self.squares = torch.zeros(len(table.weight), dtype=table.weight.dtype, device=table.weight.device)
        rate = config.table_learning_rate
        self.param_groups: list[dict[str, Any]] = [
            {"params": [table.weight], "param_names": [name], "lr": rate, "initial_lr": rate, "weight_decay": 0.0}
        ]

    def zero_grad(self) -> None:
        """Forget the gradient."""
        self.weight.grad = None

    def gradients(self) -> list[Tensor]:
        """The gradients of the rows that were looked up, which may be changed in place."""
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
        """Update the rows that were looked up."""
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
        """The rows' sums, in torch's form."""
        return {"state": {0: {"squares": self.squares}}, "param_groups": packed_groups(self.param_groups)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put the rows' sums back.

        Raises:
            ValueError: a tensor is of another kind, or has another shape.
        """
        for memory in state_dict["state"].values():
            for kind, tensor in memory.items():
                if kind != "squares" or tensor.shape != self.squares.shape:
                    raise unfit(f"{kind}/{self.name}")
        self.squares.zero_()
        for memory in state_dict["state"].values():
            self.squares.copy_(memory["squares"])
        load_groups(self.param_groups, state_dict["param_groups"])
