"""The machine: which device, in which precision, with how many threads, and where randomness comes from."""

import hashlib
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from gptloom.config import RunConfig
from gptloom.errors import ConfigError, MachineError


def pick_device(name: str) -> torch.device:
    """The device for a name; `auto` is CUDA, else MPS, else the CPU.

    Raises:
        ConfigError: the name is not a device's.
        MachineError: this machine has no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"{name!r} is not a device", where="--device", cure="choose auto, cpu, cuda, cuda:0 or mps") from None
    if device.type not in ("cpu", "cuda", "mps"):
        raise ConfigError(f"{name!r} is not supported", where="--device", cure="choose auto, cpu, cuda, cuda:0 or mps")
    count = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}[device.type]
    if (device.index or 0) >= count:
        raise MachineError(f"this machine has {count} {device.type} devices", where=f"--device {name}", cure="try --device auto, or see `gptloom doctor`")
    return device


def pick_precision(precision: str, device: torch.device) -> torch.dtype:
    """float32, or bfloat16 for autocast: when asked for, or by `auto` on CUDA devices that multiply it natively (8.0 and later)."""
    if precision == "auto":
        fast = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if fast else torch.float32
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Matrix products in `dtype`; nothing at all for float32."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


SMALL_WORK = 16_384
"""Numbers in an activation below which PyTorch's own kernels hardly share their work out, and threads only wait for each other."""

SMALL_MODEL = 4_000_000
"""Parameters below which writing one token is too little work for two threads."""


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Use this many CPU threads for a while; None changes nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def thread_count(config: RunConfig) -> int | None:
    """As many threads as were asked for; else one for small work, and PyTorch's choice (None) for all other."""
    work = config.train.rows * config.model.block_size * config.model.n_embd
    return config.train.threads or (1 if work < SMALL_WORK else None)


def derive(seed: int, *names: str | int) -> int:
    """A seed of its own (63 bits) for each purpose, from the run's one seed; the same on every machine."""
    text = "/".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or the CPU's allocator, had no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))


def peak_memory(device: torch.device) -> int | None:
    """Bytes at the peak so far: allocated on the device, or resident in this process; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return None
    with suppress(OSError, StopIteration, ValueError):  # where there is no /proc
        # What Linux counts for getrusage a process inherits from the one that launched it.
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def memory_size(device: torch.device) -> int | None:
    """Bytes of memory in all: the device's, or the machine's or its container's; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    if not hasattr(os, "sysconf"):  # Windows
        return None
    sizes = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for limit in ("memory.max", "memory/memory.limit_in_bytes"):  # control groups, versions 2 and 1
        with suppress(OSError, ValueError):  # not Linux; no limit ("max")
            sizes.append(int(Path("/sys/fs/cgroup", limit).read_text()))
    return min(sizes)


def describe_machine() -> dict[str, Any]:
    """Versions, devices and threads, for `gptloom doctor` and for run.json."""
    packages = ("gptloom", "torch", "numpy", "safetensors", "tokenizers")
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {name: metadata.version(name) for name in packages},
        "cuda": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "mps": torch.backends.mps.is_available(),
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }
