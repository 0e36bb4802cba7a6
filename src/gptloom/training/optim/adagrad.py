"""AdaGrad for tables of which a batch touches a few rows."""

from collections.abc import Mapping

import torch
from torch import Tensor

from gptloom.config.run import TrainConfig
from gptloom.fast.flat import unfit
from gptloom.model.ngram import HashedNgrams
from gptloom.training.interfaces import Optimizer, Ranks

TINY = 1e-20
"""Added to a row's sum of squares, so that a gradient of zeros divides by something."""


class RowAdagrad(Optimizer):
    """AdaGrad (Duchi et al.

    2011) with one sum of mean squares a row: row -= rate * gradient / sqrt(sum over steps of mean(gradient ** 2)).

    A row learns fast while it is new and settles as it is met more often, as a count would. Gradients are sparse: rows
    that a batch has not looked up cost nothing, and what is remembered of a row is one number.

    Args:
        name: the parameter's.
        table: the layer; it is told to make sparse gradients, on a CPU.
        config: `table_learning_rate`.
        ranks: who else trains.
    """

    def __init__(self, name: str, table: HashedNgrams, config: TrainConfig, ranks: Ranks) -> None:
        """Nothing is remembered yet."""
        self.name, self.weight, self.ranks = name, table.weight, ranks
        table.sparse = table.weight.device.type == "cpu"
        self.squares = torch.zeros(len(table.weight), dtype=table.weight.dtype, device=table.weight.device)
        self.rate = self.peak = config.table_learning_rate

    @property
    def decays(self) -> dict[str, float]:
        """See `Optimizer.decays`: none."""
        return {self.name: 0.0}

    def set_rate(self, share: float) -> None:
        """See `Optimizer.set_rate`."""
        self.rate = self.peak * share

    def zero_grad(self) -> None:
        """Forget the gradient."""
        self.weight.grad = None

    def gradients(self) -> list[Tensor]:
        """See `Optimizer.gradients`: of the rows that were looked up."""
        grad = self.weight.grad
        if grad is None:
            return []
        if not grad.is_sparse:
            return [grad]
        if not grad.is_coalesced():
            self.weight.grad = grad = grad.coalesce()
        return [grad.values()]

    def reduce(self) -> None:
        """See `Optimizer.reduce`."""
        if self.ranks.world > 1 and self.weight.grad is not None:
            dense = self.weight.grad.to_dense()
            self.ranks.add(dense)
            self.weight.grad = dense

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
        change = values * (-self.rate / (squares + TINY).sqrt())[:, None]
        if rows is None:
            self.squares.copy_(squares)
            self.weight.add_(change)
        else:
            self.squares[rows] = squares
            self.weight.index_add_(0, rows, change)

    def tensors(self) -> dict[str, Tensor]:
        """A copy of the rows' sums, in the CPU's memory."""
        return {f"squares/{self.name}": self.squares.to("cpu", copy=True)}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put `tensors()` back, and nothing else.

        Raises:
            ValueError: a tensor is none of ours, or has another shape.
        """
        self.squares.zero_()
        for key, tensor in tensors.items():
            if key != f"squares/{self.name}" or tensor.shape != self.squares.shape:
                raise unfit(key)
            self.squares.copy_(tensor)
