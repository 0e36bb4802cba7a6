"""How many operations a second a device will do for a model: by its maker's word and a usual share of it, or measured here.

How many parameters and tokens make the best of a number of operations, by what has been published.
"""

from dataclasses import dataclass

import torch

from gptloom.config.run import RunConfig
from gptloom.devices import memory_size, pick_device, pick_precision, thread_count, threads
from gptloom.hardware import find_peak
from gptloom.model.size import operations_per_token
from gptloom.studies.bench.limits import Multiplier, square
from gptloom.studies.bench.step import time_steps
from gptloom.studies.bench.timing import Budget

MFU = 0.40
"""Assumed of an accelerator, for the reason below."""

MFU_SOURCE = (
    "assumed; Llama 3 reached 38 to 43 % (Grattafiori et al. 2024, table 4), PaLM 46 % (Chowdhery et al. 2022, table 3)"
)

SHARE = 0.6
"""Assumed of this machine, for the reason below."""

SHARE_SOURCE = "assumed, for a step takes too long to be tried; GPT-2 reached it on two cores (docs/bench.md)"

HERE = ("auto", "cpu", "cuda", "mps")

_PRODUCT, _STEPS = 0.2, 0.5  # seconds
_LONGEST = 0.25  # seconds of a step that is tried


@dataclass(frozen=True)
class Rate:
    """One device.

    Attributes:
        name: of the device.
        peak: operations a second of matrix products.
        source: of that.
        mfu: share of it that training reaches.
        mfu_source: of that.
        dtype: of the products.
        memory: bytes, or None where it is not known.
        on_cpu: whether it is a CPU.
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
        """Operations a second in training."""
        return self.peak * self.mfu


def find_rate(name: str, config: RunConfig, mfu: float | None) -> Rate:
    """The rate of a published device, or of this machine's.

    Args:
        name: of `hardware.PEAKS`, or auto, cpu, cuda, cuda:N or mps for what is here, which is then measured.
        config: the model and its batch.
        mfu: the share to reckon with; by default a usual one, or one that is measured.

    Raises:
        ConfigError: the device is not known.
        MachineError: it is not here.
    """
    if name.partition(":")[0] in HERE:
        return _measured(pick_device(name), config, mfu)
    peak = find_peak(name)
    dtype = torch.bfloat16 if peak.dtype == "bfloat16" else torch.float32
    return Rate(
        peak.name, peak.rate, peak.source, mfu or MFU, "given" if mfu else MFU_SOURCE, dtype, peak.memory, on_cpu=False
    )


def _measured(device: torch.device, config: RunConfig, mfu: float | None) -> Rate:
    """Multiply large matrices, and take a few steps if they are short."""
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
"""Tokens a parameter, about what Hoffmann et al.

2022 (table 3) find best at all budgets by their first two approaches.
"""

FITTED = 70e6, 16e9
"""Parameters of the smallest and the largest model that Hoffmann et al. 2022 trained."""

CAVEAT = "of models of 70M to 16B parameters, for web text in their own tokens, in nats a token; for other text and tokens the loss is another"


@dataclass(frozen=True)
class Fit:
    """loss = e + a / parameters^alpha + b / tokens^beta (Hoffmann et al. 2022, section 3.3, approach 3).

    Attributes:
        name: in a few words.
        source: where its numbers are published.
        e: what no model gets below.
        a: what is lost to the model's size.
        b: what is lost to the number of tokens.
        alpha: how fast the first falls.
        beta: how fast the second does.
    """

    name: str
    source: str
    e: float
    a: float
    b: float
    alpha: float
    beta: float

    def loss(self, parameters: float | int, tokens: float | int) -> float:
        """Nats a token."""
        return float(self.e + self.a / parameters**self.alpha + self.b / tokens**self.beta)

    def best(self, operations: float | int) -> tuple[float, float]:
        """Parameters and tokens of the lowest loss where 6 times their product is `operations` (equation 4 of the paper)."""
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
    """What one source finds best."""

    name: str
    source: str
    parameters: float
    tokens: float


def compute_optimal(operations: float | int) -> list[Best]:
    """By the rule of 20 tokens a parameter, and by both fits; operations are 6 times parameters times tokens."""
    rule = (operations / (6 * RULE)) ** 0.5
    return [
        Best("20 tokens a parameter", "Hoffmann et al. 2022, table 3", rule, RULE * rule),
        *(Best(fit.name, fit.source, *fit.best(operations)) for fit in FITS),
    ]


def within_the_fit(parameters: float | int) -> bool:
    """Whether models of this size were among those that the fits describe."""
    return FITTED[0] <= parameters <= FITTED[1]
