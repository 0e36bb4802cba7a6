"""Language models that only count: the baselines that a trained model has to beat.

Interpolated Kneser-Ney smoothing (Kneser and Ney 1995, in the interpolated form of Chen and Goodman 1999, section
4.1.6): every count gives up the same discount, and what was given up is spread by the next shorter context,

    p(w | h) = max(c(h w) - D, 0) / c(h)  +  D * distinct(h) / c(h) * p(w | h without its first token),

down to the uniform 1 / vocabulary. Below the longest context, c counts how many different tokens a sequence has
followed, not how often it occurred. D = n1 / (n1 + 2 n2), from the numbers of sequences counted once and twice in the
training tokens (Ney, Essen and Kneser 1994), so nothing is tuned on what the model is measured on. Each context's
probabilities sum to 1.

Sequences of tokens are numbered, order by order, so any vocabulary fits into 64-bit keys, and memory is a few integers
a token.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64, Integer

from gptloom.generate.evaluate import Score

UNSEEN = -1
"""The number of a sequence that does not occur in the training tokens."""

_STRETCH = 1 << 20
"""Targets that are scored at once, so that memory does not grow with the validation text."""


@dataclass(frozen=True)
class Order:
    """The counted sequences of one length k.

    A sequence's number is its place in `keys`; its key is (number of its first k - 1 tokens) * vocabulary + its last
    token.

    Attributes:
        keys: ascending, one for every sequence that occurs.
        counts: how often it occurs; below the longest order, how many different tokens it follows.
        totals: by context number, the sum of its sequences' counts.
        kinds: by context number, how many different tokens follow it.
        discount: what every count gives up, from 0 to 1.
    """

    keys: Int64[np.ndarray, " sequences"]
    counts: Int64[np.ndarray, " sequences"]
    totals: Int64[np.ndarray, " contexts"]
    kinds: Int64[np.ndarray, " contexts"]
    discount: float

    def find(self, keys: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """The numbers of these sequences, or `UNSEEN`."""
        places = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[places] == keys, places, UNSEEN)

    def blend(
        self, contexts: Int64[np.ndarray, " n"], sequences: Int64[np.ndarray, " n"], shorter: Float64[np.ndarray, " n"]
    ) -> Float64[np.ndarray, " n"]:
        """The probabilities of sequences' last tokens, from those by the shorter context; an unseen context changes nothing.

        Args:
            contexts: numbers of the k - 1 tokens before.
            sequences: numbers of the k tokens.
            shorter: probabilities given k - 2 tokens before.
        """
        totals = np.where(contexts == UNSEEN, 0, self.totals[contexts])
        counts = np.where(sequences == UNSEEN, 0, self.counts[sequences])
        kept = np.maximum(counts - self.discount, 0.0)
        return np.where(
            totals > 0, (kept + self.discount * self.kinds[contexts] * shorter) / np.maximum(totals, 1), shorter
        )


class NGram:
    """A model that guesses the next token from the n - 1 before it by counting; n = 0 is the uniform guess.

    Args:
        ids: the training tokens.
        vocab_size: ids are below this.
        n: length of the counted sequences.
    """

    def __init__(self, ids: Integer[np.ndarray, " tokens"], vocab_size: int, n: int) -> None:
        """Count."""
        self.vocab_size, self.n = vocab_size, n
        self.orders: list[Order] = []
        tables: list[tuple[np.ndarray, np.ndarray]] = []
        numbers = np.zeros(
            len(ids) + 1, dtype=np.int64
        )  # of the sequence that ends at each place; at first the empty one, everywhere
        for length in range(1, min(n, len(ids)) + 1):
            keys, first, longer, counts = np.unique(
                numbers[:-1] * vocab_size + ids[length - 1 :],
                return_index=True,
                return_inverse=True,
                return_counts=True,
            )
            if tables:  # a shorter sequence counts once for each different longer one that ends in it
                shorter, _ = tables[-1]
                tables[-1] = (shorter, np.bincount(numbers[1:][first], minlength=len(shorter)))
            tables.append((keys, counts))
            numbers = longer
        for keys, counts in tables:
            self._add(keys, counts)

    def _add(self, keys: np.ndarray, counts: np.ndarray) -> None:
        """Sum up one order."""
        contexts = keys // self.vocab_size
        size = len(self.orders[-1].keys) if self.orders else 1
        totals = np.bincount(contexts, weights=counts, minlength=size).astype(np.int64)
        kinds = np.bincount(contexts[counts > 0], minlength=size)
        self.orders.append(Order(keys, counts.astype(np.int64), totals, kinds, discount(counts)))

    @property
    def parameters(self) -> int:
        """How many counts are kept."""
        return sum(len(order.keys) for order in self.orders)

    def probabilities(self, ids: Integer[np.ndarray, " tokens"]) -> Float64[np.ndarray, " targets"]:
        """The probability given to each token after the first, by up to n - 1 tokens before it."""
        tokens = ids.astype(np.int64)
        shorter = np.full(len(tokens) - 1, 1.0 / self.vocab_size)
        contexts = np.zeros(len(tokens), dtype=np.int64)  # the empty context of each token
        for order in self.orders:
            sequences = np.where(contexts == UNSEEN, UNSEEN, order.find(contexts * self.vocab_size + tokens))
            shorter = order.blend(contexts[1:], sequences[1:], shorter)
            contexts = np.concatenate([[UNSEEN], sequences[:-1]])  # before the first token there is nothing
        return shorter

    def next_token(self, context: Sequence[int]) -> Float64[np.ndarray, " v"]:
        """The probabilities of every token after this context, of which the last n - 1 tokens are looked at; they sum to 1."""
        tokens = np.arange(self.vocab_size, dtype=np.int64)
        shorter = np.full(self.vocab_size, 1.0 / self.vocab_size)
        for length, order in enumerate(self.orders):
            number = self._number(list(context)[len(context) - length :]) if length <= len(context) else UNSEEN
            if number == UNSEEN:
                break
            shorter = order.blend(np.full_like(tokens, number), order.find(number * self.vocab_size + tokens), shorter)
        return shorter

    def score(self, ids: Integer[np.ndarray, " tokens"], byte_count: int = 0) -> Score:
        """The loss on every token but the first; contexts reach back over the windows that a Transformer is evaluated on."""
        nats = 0.0
        for start in range(0, len(ids) - 1, _STRETCH):
            before = max(0, start - max(0, self.n - 1))
            stretch = self.probabilities(ids[before : start + _STRETCH + 1])[start - before :]
            nats -= float(np.log(stretch).sum())
        return Score(nats, len(ids) - 1, byte_count)

    def write(self, prompt: Sequence[int], tokens: int, seed: int) -> list[int]:
        """Continue a text by drawing from the model's own probabilities."""
        draws = np.random.default_rng(seed)
        ids = list(prompt)
        for _ in range(tokens):
            cumulative = self.next_token(ids).cumsum()
            ids.append(int(np.searchsorted(cumulative, draws.random() * cumulative[-1], side="right")))
        return ids[len(prompt) :]

    def _number(self, sequence: Sequence[int]) -> int:
        """The number of a sequence of at most n tokens."""
        number = 0
        for order, token in zip(self.orders, sequence, strict=False):
            number = int(order.find(np.array([number * self.vocab_size + token]))[0])
            if number == UNSEEN:
                break
        return number


def discount(counts: Integer[np.ndarray, " n"]) -> float:
    """n1 / (n1 + 2 n2); where nothing was counted once, which leaves no estimate, 0.5."""
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    return once / (once + 2 * twice) if once else 0.5
