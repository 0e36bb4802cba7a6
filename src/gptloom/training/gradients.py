"""The gradient of one global batch: in as many passes as memory requires, over all ranks."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from gptloom.checkpoint.state import Optimizer, Progress
from gptloom.config.run import IGNORE_INDEX
from gptloom.devices import derive, is_out_of_memory, reseed
from gptloom.distributed import ProcessGroup
from gptloom.errors import MachineError
from gptloom.fast.train import TrainingPass
from gptloom.training.callbacks import Interrupted
from gptloom.training.optim import all_reduce_gradients


class Gradients:
    """Computes the gradient of the mean loss over a batch's targets, and writes it into the parameters' `.grad`.

    Args:
        objective: maps a batch to (summed nats, count).
        optimizer: holds the objective's parameters.
        autocast: makes the context of each forward pass.
        device: where batches are moved.
        seed: dropout is a function of (seed, step, rank); None leaves the random state as it is.
        progress: the step, and the number of sequences per pass. That number is halved when memory runs out.
        group: the ranks that train together.
        interrupted: whether the passes are to be abandoned.
        say: reports which pass is used; see `TrainingPass`.
    """

    def __init__(
        self,
        objective: nn.Module,
        optimizer: Optimizer,
        autocast: Callable[[], AbstractContextManager[Any]],
        *,
        device: torch.device,
        seed: int | None,
        progress: Progress,
        group: ProcessGroup,
        interrupted: Callable[[], bool],
        say: Callable[[str], None] | None,
    ) -> None:
        """Nothing is computed yet."""
        self.optimizer, self.device, self.seed, self.progress = optimizer, device, seed, progress
        self.group, self.interrupted = group, interrupted
        self.passes = TrainingPass(objective, optimizer.zero_grad, autocast, say)

    def of(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, int]:
        """Compute the gradient of the global batch.

        Args:
            batch: this rank's part: ids (b, t), the targets last.

        Returns:
            The mean loss in nats per token, and the number of targets, both of the global batch.

        Raises:
            MachineError: not even one sequence fits into memory.
            Interrupted: a signal came between two passes, and there is only one rank.
        """
        count = (batch[-1] != IGNORE_INDEX).sum().to(torch.float64)
        self.group.all_reduce(count)
        targets = max(1, int(count))
        loss = self.local(batch, targets)
        if self.group.world > 1:
            self.group.all_reduce(loss)
            all_reduce_gradients(self.optimizer, self.group)
        return loss, targets

    def local(self, batch: tuple[Tensor, ...], targets: int, limit: int | None = None) -> Tensor:
        """This rank's share of the mean loss over `targets`, and of its gradient; at most `limit` passes are made."""
        progress = self.progress
        ranks = (self.group.rank,) if self.group.rank else ()
        while True:
            try:
                if self.seed is not None:  # the same dropout after a resume, and when a batch is tried again
                    reseed(derive(self.seed, "dropout", progress.step, *ranks), self.device)
                return self._passes(batch, targets, limit)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if progress.rows == 1:
                    raise MachineError(
                        "even one sequence at a time does not fit into memory",
                        cure="make the model or --model.block-size smaller",
                    ) from None
            progress.rows = -(-progress.rows // 2)

    def _passes(self, batch: tuple[Tensor, ...], targets: int, limit: int | None) -> Tensor:
        rows = self.progress.rows
        parts = [_send(part, self.device) for part in batch]
        total = torch.zeros((), device=self.device)
        for start in list(range(0, len(batch[0]), rows))[:limit]:
            if start and self.group.world == 1 and self.interrupted():
                raise Interrupted
            total += self.passes([part[start : start + rows] for part in parts], 1.0 / targets, fresh=not start)
        return total / targets


def _send(part: Tensor, device: torch.device) -> Tensor:
    """Copy to the device; for a GPU asynchronously, from pinned memory."""
    return (part.pin_memory() if device.type == "cuda" else part).to(device, non_blocking=True)


def clip_grads_with_norm_(gradients: list[Tensor], max_norm: float, total_norm: float) -> None:
    """Scale gradients with a known total norm so that it is at most `max_norm`, as the function of this name in torch.

    The small constant is PyTorch's; it avoids a division by 0.
    """
    if total_norm > max_norm:
        torch._foreach_mul_(gradients, max_norm / (total_norm + 1e-6))
