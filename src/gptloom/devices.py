"""What accelerators can do by their makers' word: the dense rate of matrix products, memory, bandwidth, and where that is published.

The machine: which device, in which precision, with how many threads, and where randomness comes from.
"""

import ctypes
import hashlib
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from gptloom.config.run import RunConfig
from gptloom.errors import ConfigError, MachineError, nearest


@dataclass(frozen=True)
class Peak:
    """One device.

    Attributes:
        name: as `gptloom plan --device` takes it.
        rate: operations a second in dense matrix products (a multiplication and an addition are two), accumulated in
            float32.
        dtype: the type that this is the rate of: what gptloom multiplies in there by default. A device without bfloat16
            units trains in float32.
        memory: bytes, or None where machines differ.
        bandwidth: bytes a second of its memory, or None.
        source: where the figures are published. Those that a maker gives with sparsity alone are halved.
        called: words that its driver's name for it has, every one of a group; the first device that fits is meant.
    """

    name: str
    rate: float
    dtype: str
    memory: float | None
    bandwidth: float | None
    source: str
    called: tuple[tuple[str, ...], ...]


def _nvidia(
    name: str,
    tera: float | int,
    gigabytes: float | int,
    per_second: float | int,
    source: str,
    *called: str,
    dtype: str = "bfloat16",
) -> Peak:
    return Peak(
        name,
        tera * 1e12,
        dtype,
        gigabytes * 1e9,
        per_second * 1e9,
        f"NVIDIA {source}",
        tuple(tuple(words.split()) for words in called),
    )


PEAKS: tuple[Peak, ...] = (
    _nvidia("b200", 2250, 180, 8000, "HGX B200 data sheet (per GPU, dense)", "B200"),
    _nvidia("h200-nvl", 835.5, 141, 4800, "H200 data sheet (1,671 with sparsity)", "H200 NVL"),
    _nvidia("h200", 989, 141, 4800, "H200 data sheet (1,979 with sparsity)", "H200"),
    _nvidia("h100-nvl", 835.5, 94, 3900, "H100 data sheet (1,671 with sparsity)", "H100 NVL"),
    _nvidia("h100-pcie", 756.5, 80, 2000, "H100 data sheet (1,513 with sparsity)", "H100 PCIe"),
    _nvidia("h100", 989, 80, 3350, "H100 data sheet, SXM (1,979 with sparsity)", "H100"),
    _nvidia("a100-40gb", 312, 40, 1555, "A100 data sheet", "A100 40GB"),
    _nvidia("a100", 312, 80, 2039, "A100 data sheet, SXM 80 GB", "A100"),
    _nvidia("l40s", 362, 48, 864, "L40S data sheet (733 with sparsity)", "L40S"),
    _nvidia("l4", 121, 24, 300, "L4 data sheet (242 with sparsity)", "L4"),
    _nvidia("a10", 125, 24, 600, "A10 data sheet", "A10"),
    _nvidia("v100", 15.7, 16, 900, "V100 data sheet, SXM2, single precision", "V100 SXM2", dtype="float32"),
    _nvidia("t4", 8.1, 16, 320, "T4 data sheet, single precision", "T4", dtype="float32"),
    _nvidia("rtx-5090", 209.5, 32, 1792, "RTX Blackwell GPU architecture white paper", "RTX 5090"),
    _nvidia("rtx-4090", 165.2, 24, 1008, "Ada GPU architecture white paper, appendix A", "RTX 4090"),
    _nvidia("rtx-3090", 71, 24, 936, "Ampere GA102 GPU architecture white paper, appendix A", "RTX 3090"),
    Peak(
        "m1",
        2.6e12,
        "float32",
        None,
        None,
        "Apple, press release of 10 November 2020 (8 GPU cores)",
        (("Apple", "M1"),),
    ),
)
"""Devices by name. For Apple's later chips their maker publishes no rate."""


def find_peak(name: str) -> Peak:
    """A device by the name that a user typed.

    Raises:
        ConfigError: it is not in the table.
    """
    known = {peak.name: peak for peak in PEAKS}
    if name.lower() not in known:
        cure = nearest(name.lower(), known) or f"choose from {', '.join(known)}, or cpu or cuda for this machine's own"
        raise ConfigError(f"no published rate is known for {name!r}", where="--device", cure=cure)
    return known[name.lower()]


def peak_of(driver_name: str) -> Peak | None:
    """The device that a driver calls by this name, such as "NVIDIA A100-SXM4-80GB"; None where it is in no table."""
    words = driver_name.replace("-", " ").split()
    if {"Laptop", "MIG", "D", "Ti"} & set(words) or (
        words[:1] == ["Apple"] and len(words) > 2
    ):  # parts and cousins: an M1 Pro is no M1
        return None
    for peak in PEAKS:
        if any(all(word in words for word in group) for group in peak.called):
            return peak
    return None


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
"""Parameters below which reading a few tokens is too little work for two threads."""

SMALL_STEP = 60_000_000
"""Multiplications of a whole step below which the same is true; beside another program threads cost more than they ever gain."""


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Use this many CPU threads for a while (None changes nothing), the quickest matrix products, and memory that is kept once it is there.

    Where oneDNN makes the products, `torch.get_float32_matmul_precision()` raises RuntimeError in here: PyTorch has an
    old and a new switch, and does not like to be asked by the old one.
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
    """For a while, leave products to MKL that are so small that beginning one with oneDNN takes longer than computing it."""

    def __enter__(self) -> None:
        """Change the switch."""
        self.products = _onednn_products()
        self.before = self.products.fp32_precision
        self.products.fp32_precision = "ieee"

    def __exit__(self, *_error: object) -> None:
        """Change it back."""
        self.products.fp32_precision = self.before


@cache
def _multiplies_better_with_onednn() -> bool:
    """Whether PyTorch's float32 products should go to oneDNN instead of MKL, which does not use AVX-512 on AMD's processors.

    benchmarks/products.py, 2 cores of Zen 5: a step of `tiny` takes 31 ms so, and 50 with MKL. PyTorch has one switch
        for that, which would
    also allow bfloat16 where there are units for it; so a product is looked at first, and the switch is left alone
    unless it comes out as exact as float32 is (bfloat16 is 1,000 times worse).
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
    """PyTorch's switch for oneDNN's matrix products (new in 2.9, and without types)."""
    return torch.backends.mkldnn.matmul  # type: ignore[attr-defined]


def _is_amd() -> bool:
    """By the system's own words: Linux keeps them in a file, Windows in the environment."""
    words = platform.processor()
    with suppress(OSError):
        words += Path("/proc/cpuinfo").read_text(errors="replace")[:1000]
    return "AuthenticAMD" in words


@cache
def keep_memory() -> None:
    """Have the C library keep what is freed, up to 2 GB, instead of handing it back and asking for it again.

    Under autograd activations come and go at every operation, and fresh memory must be mapped page by page at its first
    use. Passes by hand lay theirs out once, and gain little: a step of `tiny` takes 31.8 ms without this, and 30.5 with
    it (benchmarks/products.py).
    """
    if sys.platform != "linux":
        return
    with suppress(OSError, AttributeError):  # another C library, such as musl's
        mallopt = ctypes.CDLL(None).mallopt
        # M_MMAP_THRESHOLD (at most this), M_TRIM_THRESHOLD, M_TOP_PAD; and no M_MXFAST: each product with oneDNN asks
        # for many small pieces, and what the C library puts aside of them it would sort anew whenever something large
        # is freed.
        for option, value in ((-3, 32 << 20), (-1, (2 << 30) - 1), (-2, 64 << 20), (1, 0)):
            mallopt(option, value)


class cores:
    """Use this many CPU threads for a while; None changes nothing. It is entered for each written token, so it is no generator."""

    def __init__(self, count: int | None) -> None:
        """Nothing is changed yet."""
        self.count = count

    def __enter__(self) -> None:
        """Change the number."""
        self.before = torch.get_num_threads()
        torch.set_num_threads(self.count or self.before)

    def __exit__(self, *_error: object) -> None:
        """Change it back."""
        torch.set_num_threads(self.before)


def thread_count(config: RunConfig) -> int | None:
    """As many threads as were asked for; else one for small work, and PyTorch's choice (None) for all other."""
    work = config.train.rows * config.model.block_size * config.model.n_embd
    return config.train.threads or (1 if work < SMALL_WORK else None)


def derive(seed: int, *names: str | int) -> int:
    """A seed of its own (63 bits) for each purpose, from the run's one seed; the same on every machine."""
    text = "/".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def reseed(seed: int, device: torch.device) -> None:
    """As `torch.manual_seed`, for what is drawn on this device; PyTorch's own looks for every kind of device there is, which takes half a millisecond."""
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or the CPU's allocator, had no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def published_peak(device: torch.device, dtype: torch.dtype) -> Peak | None:
    """What a device's maker says of it; None where it is in no table, or where that is about another type than it multiplies in."""
    peak = peak_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return peak if peak is not None and peak.dtype == str(dtype).removeprefix("torch.") else None


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
