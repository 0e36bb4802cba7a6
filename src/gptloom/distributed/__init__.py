"""The processes that train one model together: the only place that talks to torch.distributed."""

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
    """The processes that train together. This one is a process alone, so nothing is sent.

    Attributes:
        rank: this process's number, from 0.
        world: how many there are.
    """

    rank = 0
    world = 1

    def broadcast(self, *values: int) -> tuple[int, ...]:
        """The first rank's values, on every rank."""
        return values

    def all_reduce(self, *tensors: Tensor) -> None:
        """Replace each tensor by its sum over the ranks, the same bits on every rank."""


class TorchProcessGroup(ProcessGroup):
    """Processes on one machine, over NCCL on CUDA and gloo elsewhere. They find each other through a file."""

    def __init__(self, rank: int, world: int, meeting: Path, device: torch.device) -> None:
        """Join; returns when all have joined."""
        self.rank, self.world, self.device = rank, world, device
        loopback = {"linux": "lo", "darwin": "lo0"}.get(sys.platform)
        if loopback:  # all are on this machine, whatever its network looks like
            os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
        backend = "nccl" if device.type == "cuda" else "gloo"
        where = meeting.absolute().as_uri()
        dist.init_process_group(backend, init_method=where, rank=rank, world_size=world, timeout=timedelta(minutes=5))
        # The others wait while the first rank evaluates. A process that has died is noticed by its closed connection,
        # not by the clock.
        self.group = dist.new_group(backend=backend, timeout=timedelta(days=1))

    def broadcast(self, *values: int) -> tuple[int, ...]:
        """The first rank's values, on every rank."""
        told = torch.tensor(values, dtype=torch.int64, device=self.device)
        with _connection_errors():
            dist.broadcast(told, src=0, group=self.group)
        return tuple(told.tolist())

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
    """Turn the error of a connection that another process has closed into one line."""
    try:
        yield
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:100]
        raise MachineError(
            f"another process of the run has ended ({reason})",
            where="ranks",
            cure="`gptloom resume` goes on from the last checkpoint",
        ) from None
