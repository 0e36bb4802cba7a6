"""Several processes on one batch: the only place that talks to torch.distributed."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from gptloom.errors import MachineError
from gptloom.training.interfaces import Ranks


class Group(Ranks):
    """Processes on one machine, over NCCL on CUDA and gloo elsewhere, that find each other through a file.

    Gradients lie in one buffer a group of parameters (`FlatAdamW`), so one sum over the ranks after the backward pass
    is enough.
    """

    def __init__(self, rank: int, world: int, meeting: Path, device: torch.device) -> None:
        """Join; returns when all have."""
        self.rank, self.world, self.device = rank, world, device
        loopback = {"linux": "lo", "darwin": "lo0"}.get(sys.platform)
        if loopback:  # all are on this machine, whatever its network looks like
            os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
        backend = "nccl" if device.type == "cuda" else "gloo"
        where = meeting.absolute().as_uri()
        dist.init_process_group(backend, init_method=where, rank=rank, world_size=world, timeout=timedelta(minutes=5))
        # The others wait while the first rank evaluates. One that has died is noticed by its closed connection, not by
        # the clock.
        self.group = dist.new_group(backend=backend, timeout=timedelta(days=1))

    def agree(self, *values: int) -> tuple[int, ...]:
        """The first rank's values, on every rank."""
        told = torch.tensor(values, dtype=torch.int64, device=self.device)
        with _others():
            dist.broadcast(told, src=0, group=self.group)
        return tuple(told.tolist())

    def add(self, *tensors: Tensor) -> None:
        """Replace each tensor by its sum over the ranks."""
        with _others():
            for tensor in tensors:
                moved = tensor.to(self.device)
                dist.all_reduce(moved, group=self.group)
                if moved is not tensor:
                    tensor.copy_(moved)

    def leave(self) -> None:
        """Close the connections."""
        dist.destroy_process_group()


@contextmanager
def _others() -> Iterator[None]:
    """Turns the error of a connection that another process has closed into one line."""
    try:
        yield
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:100]
        raise MachineError(
            f"another process of the run has ended ({reason})",
            where="ranks",
            cure="`gptloom resume` goes on from the last checkpoint",
        ) from None
