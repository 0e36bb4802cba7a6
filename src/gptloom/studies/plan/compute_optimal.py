"""The training rate of a device, and the compute-optimal size of a model.

`find_rate` estimates the operations per second in training: from the published peak and a typical utilization, or from
measurements on this machine. `compute_optimal` gives the best numbers of parameters and tokens for a number of
operations, by published scaling laws.
"""

from dataclasses import dataclass

import torch

from gptloom.config.run import RunConfig
from gptloom.devices import memory_size, pick_device, pick_precision, thread_count, threads
from gptloom.hardware import find_peak
from gptloom.model.build import operations_per_token
from gptloom.studies.bench.limits import Budget, Multiplier, square
from gptloom.studies.bench.speed import time_steps

MFU = 0.40
"""Assumed model FLOPs utilization of an accelerator; see `MFU_SOURCE`."""

MFU_SOURCE = (
    "assumed; Llama 3 reached 38 to 43 % (Grattafiori et al. 2024, table 4), PaLM 46 % (Chowdhery et al. 2022, table 3)"
)

SHARE = 0.6
"""Assumed utilization of this machine; see `SHARE_SOURCE`."""

SHARE_SOURCE = "assumed, for a step takes too long to measure; GPT-2 reached it on two cores (docs/bench.md)"

HERE = ("auto", "cpu", "cuda", "mps")

_PRODUCT, _STEPS = 0.2, 0.5  # seconds
_LONGEST = 0.25  # seconds of the longest step that is measured


@dataclass(frozen=True)
class Rate:
    """The rate and memory of one device.

    Attributes:
        name: the device's name.
        peak: the rate of matrix products, in operations per second.
        source: the source of `peak`.
        mfu: the share of the peak that training reaches.
        mfu_source: the source of `mfu`.
        dtype: the data type of the products.
        memory: the memory in bytes, or None if it is not known.
        on_cpu: whether the device is a CPU.
    """

    name: str
    peak: float
    source: str
    mfu: float
    mfu_source: str
    dtype: torch.dtype
    memory: float | int | None
    on_cpu: bool

    @property
    def reached(self) -> float:
        """Operations per second in training."""
        return self.peak * self.mfu


def find_rate(name: str, config: RunConfig, mfu: float | None) -> Rate:
    """Find the rate of a known device, or measure that of this machine.

    Args:
        name: a name from `devices.PEAKS`; or auto, cpu, cuda, cuda:N or mps for a device of this machine.
        config: the model and its batch.
        mfu: the share of the peak rate; the default is a typical or a measured share.

    Raises:
        ConfigError: the device is not known.
        MachineError: this machine does not have the device.
    """
    if name.partition(":")[0] in HERE:
        return _measured(pick_device(name), config, mfu)
    peak = find_peak(name)
    dtype = torch.bfloat16 if peak.dtype == "bfloat16" else torch.float32
    return Rate(
        peak.name, peak.rate, peak.source, mfu or MFU, "given" if mfu else MFU_SOURCE, dtype, peak.memory, on_cpu=False
    )


def _measured(device: torch.device, config: RunConfig, mfu: float | None) -> Rate:
    """Measure the rate of large matrix products, and of training steps if they are short."""
    dtype = pick_precision(config.train.precision, device)
    operations = operations_per_token(config.model)
    tokens = config.train.batch_size * config.model.block_size
    product = square(device)
    with threads(thread_count(config)):
        peak = product.operations / Multiplier(device).seconds({product: 1}, dtype, Budget(_PRODUCT))
    share, source = mfu or SHARE, "given" if mfu else SHARE_SOURCE
    if mfu is None and operations * tokens / (SHARE * peak) < _LONGEST:
        steps = time_steps(config, device, Budget(_STEPS), lambda line: None)
        share, source = operations * steps.tokens / steps.seconds.median / peak, "measured on steps of this model"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    return Rate(
        name,
        peak,
        f"products of {product.m:,} x {product.m:,} matrices, measured here",
        share,
        source,
        dtype,
        memory_size(device),
        device.type == "cpu",
    )


RULE = 20.0
"""Tokens per parameter; approximately the optimum of the first two approaches of Hoffmann et al. (2022, table 3)."""

FITTED = 70e6, 16e9
"""Parameters of the smallest and the largest model of Hoffmann et al. (2022)."""

CAVEAT = (
    "of models of 70M to 16B parameters, for web text with the authors' tokenizer, in nats a token; "
    "for other text and tokens the loss is different"
)


@dataclass(frozen=True)
class Fit:
    """A scaling law: loss = e + a / parameters^alpha + b / tokens^beta (Hoffmann et al. 2022, approach 3).

    Attributes:
        name: a short name.
        source: the publication of the coefficients.
        e: the irreducible loss.
        a: the coefficient of the model size.
        b: the coefficient of the number of tokens.
        alpha: the exponent of the model size.
        beta: the exponent of the number of tokens.
    """

    name: str
    source: str
    e: float
    a: float
    b: float
    alpha: float
    beta: float

    def loss(self, parameters: float | int, tokens: float | int) -> float:
        """The predicted loss in nats per token."""
        return float(self.e + self.a / parameters**self.alpha + self.b / tokens**self.beta)

    def best(self, operations: float | int) -> tuple[float, float]:
        """The parameters and tokens of the lowest loss, if operations = 6 * parameters * tokens (equation 4)."""
        whole = self.alpha + self.beta
        balance = (self.alpha * self.a / (self.beta * self.b)) ** (1 / whole)
        parameters = balance * (operations / 6) ** (self.beta / whole)
        return parameters, operations / 6 / parameters


FITS = (
    Fit("approach 3", "Hoffmann et al. 2022, equation 10", 1.69, 406.4, 410.7, 0.34, 0.28),
    Fit("approach 3, refitted", "Besiroglu et al. 2024, section 3", 1.8172, 482.01, 2085.43, 0.3478, 0.3658),
)


@dataclass(frozen=True)
class Best:
    """The optimal parameters and tokens by one source."""

    name: str
    source: str
    parameters: float
    tokens: float


def compute_optimal(operations: float | int) -> list[Best]:
    """The optima by the rule of 20 tokens per parameter and by both fits; operations = 6 * parameters * tokens."""
    rule = (operations / (6 * RULE)) ** 0.5
    return [
        Best("20 tokens a parameter", "Hoffmann et al. 2022, table 3", rule, RULE * rule),
        *(Best(fit.name, fit.source, *fit.best(operations)) for fit in FITS),
    ]


def within_the_fit(parameters: float | int) -> bool:
    """Whether the fits include models of this size."""
    return FITTED[0] <= parameters <= FITTED[1]
