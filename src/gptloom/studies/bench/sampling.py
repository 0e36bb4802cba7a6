"""Benchmark of sampling: the time per token as the context grows, compared with the memory bandwidth."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from gptloom.bundle import Bundle
from gptloom.config.run import RunConfig, SampleConfig
from gptloom.devices import derive, is_out_of_memory
from gptloom.model.build import build_model, cache_bytes, operations_per_token, read_weights
from gptloom.studies.bench.limits import Budget, Memory, Say, Spread
from gptloom.studies.bench.step import made_tokenizer

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
    if config.model.architecture in ("encoder", "encoder-decoder"):
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
    stamps = _Stamps(budget)
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


class _Stamps:
    """Records the time of each token of the first text; the first token, whose time includes the prompt, is skipped."""

    def __init__(self, budget: Budget) -> None:
        self.clock, self.seconds = budget.clock, list[float]()
        self.fresh, self.before, self.threads = True, 0.0, 1

    def take(self) -> None:
        """The first text has grown."""
        now = self.clock()
        if not self.fresh:
            self.seconds.append(now - self.before)
        self.before, self.fresh, self.threads = now, False, torch.get_num_threads()
