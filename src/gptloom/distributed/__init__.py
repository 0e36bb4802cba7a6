"""Process groups for data-parallel training; only this module uses torch.distributed."""

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


class ProcessGroup:
    """A group of one process, which communicates nothing; base class of larger groups.

    Attributes:
        rank: number of this process, from 0.
        world: number of processes.
    """

    rank = 0
    world = 1

    def broadcast(self, *values: int) -> tuple[int, ...]:
        """Return the values of rank 0, on every rank."""
        return values

    def all_reduce(self, *tensors: Tensor) -> None:
        """Replace each tensor by its sum over the ranks; the result is bitwise identical on all ranks."""


class TorchProcessGroup(ProcessGroup):
    """Processes on one machine, connected by NCCL on CUDA and gloo elsewhere; their rendezvous is a file."""

    def __init__(self, rank: int, world: int, meeting: Path, device: torch.device) -> None:
        """Join the group; returns when all processes have joined.

        Args:
            rank: number of this process.
            world: number of processes.
            meeting: the rendezvous file.
            device: device of this process.
        """
        self.rank, self.world, self.device = rank, world, device
        loopback = {"linux": "lo", "darwin": "lo0"}.get(sys.platform)
        if loopback:  # all processes are on this machine; do not depend on its network
            os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
        backend = "nccl" if device.type == "cuda" else "gloo"
        where = meeting.absolute().as_uri()
        dist.init_process_group(backend, init_method=where, rank=rank, world_size=world, timeout=timedelta(minutes=5))
        # A long timeout, because the others wait while rank 0 evaluates. A dead process is noticed by its closed
        # connection.
        self.group = dist.new_group(backend=backend, timeout=timedelta(days=1))

    def broadcast(self, *values: int) -> tuple[int, ...]:
        """Return the values of rank 0, on every rank."""
        sent = torch.tensor(values, dtype=torch.int64, device=self.device)
        with _connection_errors():
            dist.broadcast(sent, src=0, group=self.group)
        return tuple(sent.tolist())

    def all_reduce(self, *tensors: Tensor) -> None:
        """Replace each tensor by its sum over the ranks."""
        with _connection_errors():
            for tensor in tensors:
                moved = tensor.to(self.device)
                dist.all_reduce(moved, group=self.group)
                if moved is not tensor:
                    tensor.copy_(moved)

    def destroy(self) -> None:
        """Close the connections."""
        dist.destroy_process_group()


@contextmanager
def _connection_errors() -> Iterator[None]:
    """Convert the error of a lost connection into a MachineError."""
    try:
        yield
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:100]
        raise MachineError(
            f"another process of the run has ended ({reason})",
            where="ranks",
            cure="`gptloom resume` continues from the last checkpoint",
        ) from None
