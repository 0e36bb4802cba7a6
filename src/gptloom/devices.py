"""The machine: device, precision, threads, seeds and memory."""

import ctypes
import hashlib
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from gptloom.config.run import RunConfig
from gptloom.errors import ConfigError, MachineError
from gptloom.hardware import Peak, peak_of


def pick_device(name: str) -> torch.device:
    """Return the device of a name; `auto` means CUDA, else MPS, else the CPU.

    Raises:
        ConfigError: the name is not the name of a device.
        MachineError: this machine has no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(
            f"{name!r} is not a device", where="--device", cure="choose auto, cpu, cuda, cuda:0 or mps"
        ) from None
    if device.type not in ("cpu", "cuda", "mps"):
        raise ConfigError(f"{name!r} is not supported", where="--device", cure="choose auto, cpu, cuda, cuda:0 or mps")
    count = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}[device.type]
    if (device.index or 0) >= count:
        raise MachineError(
            f"this machine has {count} {device.type} devices",
            where=f"--device {name}",
            cure="try --device auto, or see `gptloom doctor`",
        )
    return device


def pick_precision(precision: str, device: torch.device) -> torch.dtype:
    """Return the autocast dtype; `auto` is bfloat16 on CUDA devices of capability 8.0 or later, else float32."""
    if precision == "auto":
        fast = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if fast else torch.float32
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Return an autocast context with this dtype; it does nothing for float32."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


SMALL_WORK = 16_384
"""Activation elements (rows x block_size x n_embd) below which PyTorch's kernels gain nothing from threads."""

SMALL_MODEL = 4_000_000
"""Parameters below which a forward pass of a few tokens gains nothing from a second thread."""

SMALL_STEP = 60_000_000
"""Multiplications per step below which threads gain nothing, and cost time if another program runs."""


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Set the number of CPU threads (None: unchanged), the fastest float32 matrix products, and `keep_memory`.

    If oneDNN computes the products, `torch.get_float32_matmul_precision()` raises RuntimeError inside this context,
    because PyTorch's old and new precision settings cannot be mixed.
    """
    keep_memory()
    products = _onednn_products()
    precision = products.fp32_precision
    if _multiplies_better_with_onednn():
        products.fp32_precision = "bf16"
    try:
        with cores(count):
            yield
    finally:
        products.fp32_precision = precision


class small_products:
    """Context manager that computes matrix products with MKL: oneDNN's overhead exceeds the time of small products."""

    def __enter__(self) -> None:
        """Select MKL."""
        self.products = _onednn_products()
        self.before = self.products.fp32_precision
        self.products.fp32_precision = "ieee"

    def __exit__(self, *_error: object) -> None:
        """Restore the setting."""
        self.products.fp32_precision = self.before


@cache
def _multiplies_better_with_onednn() -> bool:
    """Whether oneDNN should compute float32 products: MKL does not use AVX-512 on AMD processors.

    On 2 cores of Zen 5 a step of `tiny` takes 31 ms with oneDNN and 50 ms with MKL (benchmarks/products.py). PyTorch's
    only setting for this also permits bfloat16 on processors with bfloat16 units. One product is therefore tested, and
    the setting is used only if the result has float32's precision (bfloat16's error is 1,000 times as large).
    """
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not _is_amd():
        return False
    x = torch.linspace(-1.0, 1.0, 64 * 64).sin().view(64, 64)
    products, exact = _onednn_products(), x.double() @ x.double()
    before = products.fp32_precision
    products.fp32_precision = "bf16"
    try:
        return bool((x @ x - exact).abs().max() < 1e-5)
    finally:
        products.fp32_precision = before


def _onednn_products() -> Any:
    """Return PyTorch's settings of oneDNN's matrix products (new in 2.9, untyped)."""
    return torch.backends.mkldnn.matmul  # type: ignore[attr-defined]


def _is_amd() -> bool:
    """Whether the processor is AMD's, according to /proc/cpuinfo (Linux) or the environment (Windows)."""
    words = platform.processor()
    with suppress(OSError):
        words += Path("/proc/cpuinfo").read_text(errors="replace")[:1000]
    return "AuthenticAMD" in words


@cache
def keep_memory() -> None:
    """Make the C library keep up to 2 GB of freed memory instead of returning it to the system.

    Autograd allocates and frees activations at every operation, and the system maps new memory page by page at its
    first use. The handwritten passes allocate once and gain little: a step of `tiny` takes 31.8 ms without this setting
    and 30.5 ms with it (benchmarks/products.py).
    """
    if sys.platform != "linux":
        return
    with suppress(OSError, AttributeError):  # another C library, such as musl's
        mallopt = ctypes.CDLL(None).mallopt
        # M_MMAP_THRESHOLD (32 MB is the maximum), M_TRIM_THRESHOLD, M_TOP_PAD, and M_MXFAST = 0: each oneDNN product
        # allocates many small chunks, and glibc would consolidate its fast bins whenever a large block is freed.
        for option, value in ((-3, 32 << 20), (-1, (2 << 30) - 1), (-2, 64 << 20), (1, 0)):
            mallopt(option, value)


class cores:
    """Context manager that sets the number of CPU threads; None changes nothing.

    It is a class, not a generator, because it is entered for each generated token.
    """

    def __init__(self, count: int | None) -> None:
        """Store the number."""
        self.count = count

    def __enter__(self) -> None:
        """Set the number of threads."""
        self.before = torch.get_num_threads()
        torch.set_num_threads(self.count or self.before)

    def __exit__(self, *_error: object) -> None:
        """Restore the previous number."""
        torch.set_num_threads(self.before)


def thread_count(config: RunConfig) -> int | None:
    """Return `train.threads` if it is set; else 1 for small activations, and None (PyTorch's default) for others."""
    work = config.train.rows * config.model.block_size * config.model.n_embd
    return config.train.threads or (1 if work < SMALL_WORK else None)


def derive(seed: int, *names: str | int) -> int:
    """Derive a separate 63-bit seed for each purpose (`names`) from the run's seed; the same on every machine."""
    text = "/".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def reseed(seed: int, device: torch.device) -> None:
    """Seed the generator of this device. `torch.manual_seed` seeds every backend, which takes 0.5 ms."""
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a device or the CPU's allocator is out of memory."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def published_peak(device: torch.device, dtype: torch.dtype) -> Peak | None:
    """Return the published figures of a device; None if it is not in the table, or the rate is for another dtype."""
    peak = peak_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return peak if peak is not None and peak.dtype == str(dtype).removeprefix("torch.") else None


def peak_memory(device: torch.device) -> int | None:
    """Return the peak memory so far in bytes: CUDA's allocations, or this process's resident size; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return None
    with suppress(OSError, StopIteration, ValueError):  # where there is no /proc
        # On Linux, a process inherits getrusage's peak from the process that launched it.
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def memory_size(device: torch.device) -> int | None:
    """Return the total memory in bytes of the device, or of the machine or its container; None if unknown."""
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
    """Return versions, devices and threads, for `gptloom doctor` and run.json."""
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
