"""Starting the other ranks of a run: Python processes that read everything from the run folder."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from gptloom.distributed import ProcessGroup, TorchProcessGroup
from gptloom.errors import MachineError

_PATIENCE = 10.0
"""Seconds before a rank that does not exit is killed."""


@contextmanager
def launch(run: Path, world: int, device: torch.device, checkpoint: Path | None = None) -> Iterator[ProcessGroup]:
    """Start the other ranks, and yield the group with this process as rank 0; the others exit when it exits.

    Args:
        run: the complete run folder.
        world: number of processes.
        device: device of this process; on CUDA, rank n uses device n.
        checkpoint: the checkpoint to continue from; None to start at step 0.

    Raises:
        MachineError: there are fewer devices than ranks, or a process could not be started.
    """
    if world == 1:
        yield ProcessGroup()
        return
    if device.type == "mps" or (device.type == "cuda" and torch.cuda.device_count() < world):
        count = torch.cuda.device_count() if device.type == "cuda" else 1
        raise MachineError(
            f"{world} ranks need {world} devices, and there are {count}",
            where="--train.ranks",
            cure="use --train.ranks 1, or --device cpu",
        )
    with tempfile.TemporaryDirectory(prefix="gptloom-") as folder:
        meeting = Path(folder) / "meeting"
        words = [
            str(run.absolute()),
            str(world),
            str(meeting),
            device.type,
            str(checkpoint.absolute()) if checkpoint else "",
        ]
        others = [_start(rank, words) for rank in range(1, world)]
        try:
            _await(others, meeting)
            group = TorchProcessGroup(0, world, meeting, own_device(device.type, 0))
            yield group
            group.destroy()
        finally:
            for process in others:
                _end(process)


def own_device(kind: str, rank: int) -> torch.device:
    """Return the device of a rank: a separate one with CUDA, else the same for all."""
    return torch.device(kind, rank) if kind == "cuda" else torch.device(kind)


def _start(rank: int, words: list[str]) -> subprocess.Popen[bytes]:
    """Start a rank. Its standard input is a pipe that closes when this process exits; then the rank exits, too."""
    command = [sys.executable, "-m", "gptloom.training.worker", str(rank), *words]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)


def _await(others: Sequence[subprocess.Popen[bytes]], meeting: Path) -> None:
    """Wait until all ranks are ready to join: joining a group with a dead rank would hang."""
    while not all(ready(meeting, rank).exists() for rank in range(1, len(others) + 1)):
        for process in others:
            if process.poll() is not None:
                raise MachineError(
                    f"a process of the run failed at its start, with exit code {process.returncode}",
                    where="--train.ranks",
                    cure="read its error message above",
                )
        time.sleep(0.02)


def ready(meeting: Path, rank: int) -> Path:
    """Return the file that a rank creates when it is ready to join."""
    return meeting.with_name(f"ready-{rank}")


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.stdin:
        process.stdin.close()
    try:
        process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
