"""Benchmarks of the training step and of sampling.

A training step is measured with the trainer, optimizer and batches of a run, on synthetic tokens. Sampling is measured
per token as the context grows, and compared with the memory bandwidth.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from gptloom.bundle import Bundle
from gptloom.checkpoint.state import Horizon
from gptloom.config.load import resolve
from gptloom.config.model import ModelConfig
from gptloom.config.run import RunConfig, SampleConfig
from gptloom.data.tokenizers import CharTokenizer
from gptloom.data.tokens import Tokens
from gptloom.devices import derive, is_out_of_memory, pick_precision, thread_count, threads
from gptloom.generate.task import task_of
from gptloom.model.base import LanguageModel
from gptloom.model.build import build_model, cache_bytes, operations_per_token, read_weights
from gptloom.studies.bench.limits import Budget, Memory, Product, Products, Say, Spread
from gptloom.training.callbacks import Callback, Request, View
from gptloom.training.schedule import make_horizon
from gptloom.training.setup import setup, wants_compile
from gptloom.training.trainer import Source

_LEAST, _MOST = 3, 200  # steps of one measurement; where they are long, one is enough
MAX_STEPS = 1_000_000
_TOKENS = 1 << 20


@dataclass(frozen=True)
class Steps:
    """The measured training steps.

    Attributes:
        seconds: time per step.
        tokens: targets per step.
        passes: forward and backward passes per step.
        products: the matrix products of a step, including the optimizer's.
        parameters: number of the model's parameters.
        dtype: dtype of the products.
        threads: CPU threads.
    """

    seconds: Spread
    tokens: int
    passes: int
    products: Counter[Product]
    parameters: int
    dtype: torch.dtype
    threads: int


def time_steps(config: RunConfig, device: torch.device, budget: Budget, say: Say) -> Steps:
    """Train for the length of the budget after all preparations, but at least two steps; the first does not count.

    Args:
        config: all settings, including the vocabulary's size.
        device: the device.
        budget: the time budget; its clock measures the steps.
        say: prints messages for the user.

    Raises:
        MachineError: the model does not fit into memory.
        DivergedError: the loss is not finite.
    """
    torch.manual_seed(config.seed)
    train, model, source = config.train, build_model(config.model).to(device), made_batches(config)
    batch = source.batch(0)
    compiles = wants_compile(train, make_horizon(train, Fraction(_TOKENS, batch[-1].numel())), device)
    config = resolve(config, {"train": {"compile": "on" if compiles else "off"}}, where="bench")
    model.train()
    with threads(thread_count(config)):
        products = _observe(config, model, batch)
        stamps = _StepStamps(budget)
        horizon = Horizon(None, MAX_STEPS)
        trainer = setup(config, model=model, batches=source, horizon=horizon, callbacks=[stamps], say=say)
        stamps.budget = budget.again()
        trainer.fit()
        return Steps(
            seconds=Spread.of(np.diff(stamps.times).tolist()),
            tokens=batch[-1].numel(),
            passes=-(-len(batch[0]) // trainer.progress.rows),
            products=products,
            parameters=model.parameter_count(),
            dtype=pick_precision(train.precision, device),
            threads=torch.get_num_threads(),
        )


def made_batches(config: RunConfig) -> Source:
    """Batches of random tokens from a separate generator: windows of text, or pairs of the maximum length."""
    model, task = config.model, task_of(config.model)
    # An end of text follows each side of a pair; the target's counts as a token.
    sides = (
        [model.block_size + 1, model.block_size] * config.train.batch_size
        if task.pairs
        else [max(_TOKENS, 2 * model.block_size)]
    )
    ids = np.random.default_rng(derive(config.seed, "bench")).integers(0, model.vocab_size, sum(sides))
    tokens = Tokens(ids.astype(np.uint32), np.cumsum([0, *sides[:-1]]))
    tokenizer = made_tokenizer(model, ends=True) if task.pairs else CharTokenizer("a", ends=False)
    return task.training_batches(config, tokens, tokenizer)


def made_tokenizer(config: ModelConfig, *, ends: bool) -> CharTokenizer:
    """A tokenizer with one character per token of the model; with `ends`, the last token is the end of text."""
    points = [point for point in range(0x21, 0x21 + config.vocab_size + 0x800) if not 0xD800 <= point < 0xE000]
    return CharTokenizer("".join(map(chr, points[: config.vocab_size - ends])), ends=ends)


def _observe(config: RunConfig, model: LanguageModel, batch: tuple[torch.Tensor, ...]) -> Counter[Product]:
    """The matrix products of a step, observed in one pass and one update of a separate trainer."""
    rows, once = config.train.rows, resolve(config, {"train": {"compile": "off"}}, where="bench")
    trainer = setup(once, model=model, batches=made_batches(config), horizon=Horizon(None, MAX_STEPS))
    inside, update = Products(), Products()
    parts = [part[:rows].to(model.device) for part in batch]
    passes = trainer.gradients.passes
    passes.check(parts)  # before counting: this compares the passes
    with inside:
        passes(parts, 1.0 / parts[-1].numel())
    with update:
        trainer.optimizer.step()
    trainer.optimizer.zero_grad()
    count = -(-len(batch[0]) // rows)
    return Counter({product: times * count for product, times in inside.found.items()}) + update.found


class _StepStamps(Callback):
    """Reads the clock after each step.

    Each step waits for its loss and gradient norm, so a device is ahead of the clock by at most one update.
    """

    def __init__(self, budget: Budget) -> None:
        self.budget, self.times = budget, list[float]()

    def after_step(self, view: View) -> Request:
        self.times.append(self.budget.clock())
        measured, budget = len(self.times) - 1, self.budget
        spent = budget.left == 0.0 and (measured >= _LEAST or budget.over > budget.seconds)
        return Request.STOP if measured and (spent or measured >= _MOST) else Request.NOTHING


STREAMS = 1, 32
"""Numbers of texts that are sampled in one batch."""

SMALLEST = 16
"""Tokens of the shortest context, unless the block size is smaller."""

LARGEST_ALPHABET = 1_000_000
"""Largest vocabulary whose tokens can be written as one Unicode character each."""

_LIMIT = 0.3  # seconds for each measurement of memory
_ROUNDS = 20


@dataclass(frozen=True)
class Writing:
    """The measured sampling speed at one context length.

    Attributes:
        context: the context length, in tokens, of the last sampled token.
        streams: the number of texts in the batch.
        seconds: the time for one token of each text.
        read: the bytes of weights and cache that one such step reads.
        rate: the measured rate, in bytes per second, at which as many threads read as many bytes.
        threads: the number of threads.
    """

    context: int
    streams: int
    seconds: Spread
    read: int
    rate: float
    threads: int

    def as_dict(self) -> dict[str, Any]:
        """The measurements for JSON."""
        limit = self.read / self.rate
        return {
            "value": self.context,
            "streams": self.streams,
            "ms": 1000 * self.seconds.median,
            "ms_quartiles": [1000 * self.seconds.low, 1000 * self.seconds.high],
            "repeats": self.seconds.repeats,
            "threads": self.threads,
            "tokens_per_second": self.streams / self.seconds.median,
            "bytes_per_token": self.read / self.streams,
            "bytes_per_second": self.read / self.seconds.median,
            "limit_bytes_per_second": self.rate,
            "limit_tokens_per_second": self.streams / limit,
            "share_of_limit": limit / self.seconds.median,
        }


def why_not(config: RunConfig) -> str | None:
    """The reason why a model cannot continue a text; None if it can."""
    if not task_of(config.model).continues:
        return f"an {config.model.architecture} does not continue a text"
    if config.model.vocab_size > LARGEST_ALPHABET:
        return f"there are no characters for {config.model.vocab_size:,} tokens"
    return None


def time_writing(
    config: RunConfig, device: torch.device, budget: Budget, rate: float, say: Say
) -> Iterator[Writing | tuple[int, int, str]]:
    """Sample from an untrained model with contexts of growing length, as `gptloom sample` does.

    Args:
        config: the configuration of the model.
        device: the device to sample on.
        budget: the time budget.
        rate: the expected rate, in operations per second, of reading a context.
        say: a function that is called with a line about each measurement.

    Yields:
        The measurement; or the context, the number of streams, and the reason why the measurement was skipped.
    """
    torch.manual_seed(config.seed)
    bundle = Bundle(build_model(config.model).to(device).eval(), made_tokenizer(config.model, ends=False))
    contexts = _contexts(config.model.block_size)
    plan = [(context, streams) for streams in STREAMS for context in contexts]
    memory = Memory(device)
    for number, (context, streams) in enumerate(plan):
        reading = operations_per_token(config.model) / 3 * context * streams / rate
        if 2 * reading > budget.left:
            yield context, streams, f"not enough time: reading the context would take about {reading:.1f} s"
            continue
        try:
            found = _measure(config, bundle, memory, context, streams, budget.of(budget.left / (len(plan) - number)))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            yield context, streams, "out of memory"
            continue
        say(f"sampling at {context:,}, {streams} at once: {streams / found.seconds.median:,.0f} tokens/s")
        yield found


def _contexts(block: int) -> list[int]:
    """The model's block size, and that halved up to four times."""
    return sorted({max(min(block, SMALLEST), block >> power) for power in range(5)})


def _measure(config: RunConfig, bundle: Bundle, memory: Memory, context: int, streams: int, budget: Budget) -> Writing:
    """Sample a few tokens at the end of the context, repeatedly within the budget."""
    count = max(1, min(context // 4, 64))
    draws = np.random.default_rng(derive(config.seed, "bench", context))
    prompt = bundle.tokenizer.decode(draws.integers(0, config.model.vocab_size, max(1, context - count - 1)))
    stamps = _TokenStamps(budget)
    for _ in range(_ROUNDS):
        stamps.fresh = True
        for piece in bundle.stream(prompt, SampleConfig(tokens=count + 1, samples=streams, seed=config.seed)):
            if piece.row == 0 and piece.text:
                stamps.take()
        if budget.left <= 2 * _LIMIT:
            break
    span = config.model.block_size if not config.model.is_recurrent else 1
    read = 4 * read_weights(config.model) + streams * cache_bytes(config.model, span) * min(context, span) // span
    rate = memory.rate(read, stamps.threads, budget.of(_LIMIT))
    return Writing(context, streams, Spread.of(stamps.seconds), read, rate, stamps.threads)


class _TokenStamps:
    """Records the time of each token of the first text; the first token, whose time includes the prompt, is skipped."""

    def __init__(self, budget: Budget) -> None:
        self.clock, self.seconds = budget.clock, list[float]()
        self.fresh, self.before, self.threads = True, 0.0, 1

    def take(self) -> None:
        """Record a token of the first text."""
        now = self.clock()
        if not self.fresh:
            self.seconds.append(now - self.before)
        self.before, self.fresh, self.threads = now, False, torch.get_num_threads()
