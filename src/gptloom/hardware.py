"""Published peak rates, memory and bandwidth of accelerators. This file does not import torch."""

from dataclasses import dataclass

from gptloom.errors import ConfigError, nearest


@dataclass(frozen=True)
class Peak:
    """The published figures of one accelerator.

    Attributes:
        name: name for `gptloom plan --device`.
        rate: FLOP/s of dense matrix products with float32 accumulation (a multiply-add counts as two).
        dtype: dtype of `rate`, which is gptloom's default on the device: float32 without bfloat16 units.
        memory: bytes, or None if machines differ.
        bandwidth: memory bandwidth in bytes per second, or None.
        source: publication of the figures. Rates that are published only with sparsity are halved.
        called: groups of words; a driver name that contains all words of a group means this device. The first device
            of the table that matches is used.
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
"""All known devices. Apple publishes no rates of its later chips."""


def find_peak(name: str) -> Peak:
    """Return the device that the user named.

    Raises:
        ConfigError: the name is not in the table.
    """
    known = {peak.name: peak for peak in PEAKS}
    if name.lower() not in known:
        cure = nearest(name.lower(), known) or f"choose from {', '.join(known)}, or cpu or cuda for this machine's own"
        raise ConfigError(f"no published rate is known for {name!r}", where="--device", cure=cure)
    return known[name.lower()]


def peak_of(driver_name: str) -> Peak | None:
    """Return the device with this driver name, such as "NVIDIA A100-SXM4-80GB"; None if it is not in the table."""
    words = driver_name.replace("-", " ").split()
    # Partitions and variants are other devices: an M1 Pro is not an M1.
    if {"Laptop", "MIG", "D", "Ti"} & set(words) or (words[:1] == ["Apple"] and len(words) > 2):
        return None
    for peak in PEAKS:
        if any(all(word in words for word in group) for group in peak.called):
            return peak
    return None
