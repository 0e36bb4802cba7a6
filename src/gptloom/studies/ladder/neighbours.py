"""Compare the Transformer with recurrent networks of equal size: loss over time, and gradient over distance.

N-gram language models: baselines that only count.

They use interpolated Kneser-Ney smoothing (Kneser and Ney 1995; Chen and Goodman 1999, section 4.1.6). Every count is
reduced by the same discount D. The shorter context distributes the removed probability:

    p(w | h) = max(c(h w) - D, 0) / c(h)  +  D * distinct(h) / c(h) * p(w | h without its first token)

The recursion ends with the uniform distribution, 1 / vocabulary. For all orders except the longest, c is the number of
different tokens before a sequence, not its frequency. D = n1 / (n1 + 2 n2), where n1 and n2 are the numbers of
sequences that occur once and twice in the training tokens (Ney, Essen and Kneser 1994). So no value is tuned on the
validation text. The probabilities of each context sum to 1.

The sequences of each order are numbered. So any vocabulary fits into 64-bit keys, and the memory is a few integers per
token.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Int64, Integer

from gptloom.config.load import parse, resolve
from gptloom.config.model import ModelConfig
from gptloom.config.run import RunConfig
from gptloom.errors import ConfigError
from gptloom.generate.task import Score
from gptloom.interpret.statistics import gradient_by_distance
from gptloom.model.build import build_model
from gptloom.studies.trial import Material, Trial, run_trial

ARCHITECTURES = ("decoder", "rnn", "lstm", "gru")
EVALUATIONS = 10
_ROWS = 16  # validation windows for the mean gradient


@dataclass(frozen=True)
class Neighbour:
    """The results of one architecture.

    Attributes:
        name: the architecture.
        width: n_embd; it gives about as many parameters as the decoder has.
        trial: the result of its training.
        distances: distances in tokens between a prediction and an earlier token.
        gradients: the mean norm of d loss / d embedding at each distance, after training.
    """

    name: str
    width: int
    trial: Trial
    distances: list[int]
    gradients: list[float]

    @property
    def reach(self) -> int:
        """The largest distance at which the gradient is at least 1 % of that at distance 0."""
        return max(
            k for k, size in zip(self.distances, self.gradients, strict=True) if size >= 0.01 * self.gradients[0]
        )


def count_parameters(config: ModelConfig) -> int:
    """The number of parameters; the model is built on the meta device."""
    with torch.device("meta"):
        return build_model(config).parameter_count()


def match_width(config: ModelConfig, architecture: str, wanted: int) -> ModelConfig:
    """The settings of another architecture, with the width whose number of parameters is nearest to `wanted`.

    Raises:
        ConfigError: the other settings do not fit this architecture.
    """
    step = 1 if architecture in ("rnn", "lstm", "gru") else 2 * config.n_head

    def at(multiple: int) -> ModelConfig:
        return parse(
            ModelConfig,
            config.model_dump() | {"architecture": architecture, "n_embd": multiple * step},
            where=architecture,
        )

    low, high = 1, 2
    while count_parameters(at(high)) < wanted:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count_parameters(at(middle)) < wanted else (low, middle)
    return min((at(low), at(high)), key=lambda shape: abs(count_parameters(shape) - wanted))


def compare_neighbours(
    config: RunConfig,
    material: Material,
    *,
    architectures: Sequence[str] = ARCHITECTURES,
    say: Callable[[str], None] = print,
) -> list[Neighbour]:
    """Train each architecture with the same settings, text, batches and number of parameters.

    Args:
        config: the decoder's settings, including the steps or minutes of each training.
        material: the text.
        architectures: names from `ARCHITECTURES`.
        say: a function that is called with a line about each finished training.

    Raises:
        ConfigError: there is no such architecture.
    """
    unknown = set(architectures) - set(ARCHITECTURES)
    if unknown:
        raise ConfigError(
            f"no architecture {', '.join(sorted(unknown))} for running text",
            where="neighbours",
            cure=f"choose from {', '.join(ARCHITECTURES)}",
        )
    decoder = parse(
        ModelConfig, config.model.model_dump() | {"vocab_size": material.tokenizer.vocab_size}, where="the tokenizer"
    )
    wanted, found = count_parameters(decoder), []
    for name in architectures:
        shape = decoder if name == "decoder" else match_width(decoder, name, wanted)
        changes: Mapping[str, object] = {"model": shape.model_dump()}
        if config.train.steps is not None and config.train.eval_every is None:
            changes = {**changes, "train": {"eval_every": max(1, config.train.steps // EVALUATIONS)}}
        trial, bundle = run_trial(resolve(config, changes, where=name), material)
        distances, gradients = gradient_by_distance(bundle.model, _windows(material, shape.block_size))
        found.append(Neighbour(name, shape.n_embd, trial, distances, gradients))
        say(
            f"{name}: {trial.parameters:,} parameters, "
            f"loss {trial.val_loss:.4f} after {trial.steps:,} steps in {trial.seconds:.0f} s"
        )
    return found


def _windows(material: Material, block_size: int) -> torch.Tensor:
    """Evenly spaced windows of the validation text, (rows, block_size + 1) or shorter if the text is."""
    ids = material.parts.val.ids
    time = min(block_size + 1, len(ids))
    starts = np.linspace(0, len(ids) - time, _ROWS).astype(np.int64)
    return torch.from_numpy(ids[starts[:, None] + np.arange(time)].astype(np.int64))


UNSEEN = -1
"""The number of all sequences that do not occur in the training tokens."""

_STRETCH = 1 << 20
"""Targets that are scored at once; it bounds the memory."""


@dataclass(frozen=True)
class Order:
    """The counts of all sequences of k tokens.

    The number of a sequence is its index in `keys`. Its key is (number of its first k - 1 tokens) * vocabulary + its
    last token.

    Attributes:
        keys: the keys of all sequences that occur, in ascending order.
        counts: the frequency of each sequence; for shorter orders, the number of different tokens before it.
        totals: the sum of the counts of each context, by context number.
        kinds: the number of different next tokens of each context, by context number.
        discount: the discount of every count, from 0 to 1.
    """

    keys: Int64[np.ndarray, " sequences"]
    counts: Int64[np.ndarray, " sequences"]
    totals: Int64[np.ndarray, " contexts"]
    kinds: Int64[np.ndarray, " contexts"]
    discount: float

    def find(self, keys: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """The numbers (n,) of the sequences with these keys (n,), or `UNSEEN`."""
        places = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[places] == keys, places, UNSEEN)

    def blend(
        self, contexts: Int64[np.ndarray, " n"], sequences: Int64[np.ndarray, " n"], shorter: Float64[np.ndarray, " n"]
    ) -> Float64[np.ndarray, " n"]:
        """The probabilities of the sequences' last tokens; an unseen context returns those of the shorter context.

        Args:
            contexts: the numbers of the first k - 1 tokens.
            sequences: the numbers of all k tokens.
            shorter: the probabilities given the k - 2 tokens before the last.
        """
        totals = np.where(contexts == UNSEEN, 0, self.totals[contexts])
        counts = np.where(sequences == UNSEEN, 0, self.counts[sequences])
        kept = np.maximum(counts - self.discount, 0.0)
        return np.where(
            totals > 0, (kept + self.discount * self.kinds[contexts] * shorter) / np.maximum(totals, 1), shorter
        )


class NGram:
    """An n-gram model; n = 0 is the uniform distribution.

    Args:
        ids: the ids of the training tokens.
        vocab_size: the vocabulary size.
        n: the length of the counted sequences.
    """

    def __init__(self, ids: Integer[np.ndarray, " tokens"], vocab_size: int, n: int) -> None:
        """Count the sequences of all orders."""
        self.vocab_size, self.n = vocab_size, n
        self.orders: list[Order] = []
        tables: list[tuple[np.ndarray, np.ndarray]] = []
        # The number of the sequence that ends at each position; at first the empty sequence.
        numbers = np.zeros(len(ids) + 1, dtype=np.int64)
        for length in range(1, min(n, len(ids)) + 1):
            keys, first, longer, counts = np.unique(
                numbers[:-1] * vocab_size + ids[length - 1 :],
                return_index=True,
                return_inverse=True,
                return_counts=True,
            )
            if tables:  # a shorter sequence counts once for each different longer sequence that ends with it
                shorter, _ = tables[-1]
                tables[-1] = (shorter, np.bincount(numbers[1:][first], minlength=len(shorter)))
            tables.append((keys, counts))
            numbers = longer
        for keys, counts in tables:
            self._add(keys, counts)

    def _add(self, keys: np.ndarray, counts: np.ndarray) -> None:
        """Add one order with its totals and discount."""
        contexts = keys // self.vocab_size
        size = len(self.orders[-1].keys) if self.orders else 1
        totals = np.bincount(contexts, weights=counts, minlength=size).astype(np.int64)
        kinds = np.bincount(contexts[counts > 0], minlength=size)
        self.orders.append(Order(keys, counts.astype(np.int64), totals, kinds, discount(counts)))

    @property
    def parameters(self) -> int:
        """The number of stored counts."""
        return sum(len(order.keys) for order in self.orders)

    def probabilities(self, ids: Integer[np.ndarray, " tokens"]) -> Float64[np.ndarray, " targets"]:
        """The probabilities (t - 1,) of all tokens but the first, given up to n - 1 tokens before each."""
        tokens = ids.astype(np.int64)
        shorter = np.full(len(tokens) - 1, 1.0 / self.vocab_size)
        contexts = np.zeros(len(tokens), dtype=np.int64)  # the empty context of each token
        for order in self.orders:
            sequences = np.where(contexts == UNSEEN, UNSEEN, order.find(contexts * self.vocab_size + tokens))
            shorter = order.blend(contexts[1:], sequences[1:], shorter)
            contexts = np.concatenate([[UNSEEN], sequences[:-1]])  # the first token has no context
        return shorter

    def next_token(self, context: Sequence[int]) -> Float64[np.ndarray, " v"]:
        """The distribution (vocabulary,) of the next token, given the last n - 1 tokens of the context."""
        tokens = np.arange(self.vocab_size, dtype=np.int64)
        shorter = np.full(self.vocab_size, 1.0 / self.vocab_size)
        for length, order in enumerate(self.orders):
            number = self._number(list(context)[len(context) - length :]) if length <= len(context) else UNSEEN
            if number == UNSEEN:
                break
            shorter = order.blend(np.full_like(tokens, number), order.find(number * self.vocab_size + tokens), shorter)
        return shorter

    def score(self, ids: Integer[np.ndarray, " tokens"], byte_count: int = 0) -> Score:
        """The loss on every token but the first; unlike a Transformer's windows, contexts may start anywhere."""
        nats = 0.0
        for start in range(0, len(ids) - 1, _STRETCH):
            before = max(0, start - max(0, self.n - 1))
            stretch = self.probabilities(ids[before : start + _STRETCH + 1])[start - before :]
            nats -= float(np.log(stretch).sum())
        return Score(nats, len(ids) - 1, byte_count)

    def write(self, prompt: Sequence[int], tokens: int, seed: int) -> list[int]:
        """Sample a continuation of a prompt; return the new ids."""
        draws = np.random.default_rng(seed)
        ids = list(prompt)
        for _ in range(tokens):
            cumulative = self.next_token(ids).cumsum()
            ids.append(int(np.searchsorted(cumulative, draws.random() * cumulative[-1], side="right")))
        return ids[len(prompt) :]

    def _number(self, sequence: Sequence[int]) -> int:
        """The number of a sequence of at most n tokens, or `UNSEEN`."""
        number = 0
        for order, token in zip(self.orders, sequence, strict=False):
            number = int(order.find(np.array([number * self.vocab_size + token]))[0])
            if number == UNSEEN:
                break
        return number


def discount(counts: Integer[np.ndarray, " n"]) -> float:
    """The discount n1 / (n1 + 2 n2); 0.5 if no sequence was counted once, for then there is no estimate."""
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    return once / (once + 2 * twice) if once else 0.5
