"""The gradient of one global batch: in as many passes as memory needs, over as many ranks as take part."""

import torch
from torch import Tensor

from gptloom.checkpoint.state import Progress
from gptloom.config.run import IGNORE_INDEX
from gptloom.devices import derive, is_out_of_memory, reseed
from gptloom.errors import MachineError
from gptloom.fast.train import TrainingPass
from gptloom.training.interfaces import Interrupted, Job
from gptloom.training.optim import all_reduce_gradients


class Gradients:
    """Fills the optimizer's gradients with those of the mean loss over a batch's targets, wherever they lie."""

    def __init__(self, job: Job, progress: Progress) -> None:
        """`progress` tells the step, and remembers how many rows memory allows at once."""
        self.job, self.progress = job, progress
        self.passes = TrainingPass(job.objective, job.optimizer.zero_grad, job.autocast, job.say)

    def of(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, int]:
        """The mean loss over the global batch and its count of targets; `batch` is this rank's part.

        Raises:
            MachineError: not even one sequence fits into memory.
            Interrupted: a signal came between two passes, and no other rank waits.
        """
        group = self.job.group
        count = (batch[-1] != IGNORE_INDEX).sum().to(torch.float64)
        group.all_reduce(count)
        targets = max(1, int(count))
        loss = self.local(batch, targets)
        if group.world > 1:
            group.all_reduce(loss)
            all_reduce_gradients(self.job.optimizer, group)
        return loss, targets

    def local(self, batch: tuple[Tensor, ...], targets: int, limit: int | None = None) -> Tensor:
        """This rank's share of the mean loss over `targets`, its gradients in place; at most `limit` passes are made."""
        job, progress = self.job, self.progress
        others = (job.group.rank,) if job.group.rank else ()
        while True:
            try:
                # Dropout is a function of (seed, step, rank): the same after a resume, or when a batch is tried again.
                reseed(derive(job.seed, "dropout", progress.step, *others), job.device)
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
        job, rows = self.job, self.progress.rows
        parts = [_send(part, job.device) for part in batch]
        total = torch.zeros((), device=job.device)
        for start in list(range(0, len(batch[0]), rows))[:limit]:
            if start and job.group.world == 1 and job.interrupted():
                raise Interrupted
            total += self.passes([part[start : start + rows] for part in parts], 1.0 / targets, fresh=not start)
        return total / targets


def _send(part: Tensor, device: torch.device) -> Tensor:
    """A copy on the device; a GPU fetches it from pinned memory while the CPU goes on."""
    return (part.pin_memory() if device.type == "cuda" else part).to(device, non_blocking=True)


def clip_grads_with_norm_(gradients: list[Tensor], max_norm: float, total_norm: float) -> None:
    """Scale gradients whose common norm is known so that it is at most `max_norm`, as torch's function of this name.

    The small number is PyTorch's, against division by 0.
    """
    if total_norm > max_norm:
        torch._foreach_mul_(gradients, max_norm / (total_norm + 1e-6))
