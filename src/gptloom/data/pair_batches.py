"""Batches of pairs (source, target): training batches as functions of (seed, step), evaluation, and the split."""

from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int, Int64

from gptloom.config.run import IGNORE_INDEX, DataConfig
from gptloom.data.batches import Draws
from gptloom.data.tokens import Split, Tokens, TokenStore
from gptloom.errors import InputError

_WINDOW = 32  # batches whose pairs are sorted by length together; more would hardly reduce the padding
_ORDERS = 2  # cached epoch orders: a batch may span two epochs


class PairBatch(NamedTuple):
    """Sources, and the targets to predict from them.

    Attributes:
        sources: token ids; padding is `IGNORE_INDEX`.
        inputs: the end-of-text id, then the target's ids; padding is 0.
        targets: the target's ids, then the end-of-text id; padding is `IGNORE_INDEX`.
    """

    sources: Int[torch.Tensor, "batch source_time"]
    inputs: Int[torch.Tensor, "batch time"]
    targets: Int[torch.Tensor, "batch time"]


class _Pairs:
    """The start and length of each side of each pair; lengths exclude the end-of-text id."""

    def __init__(self, tokens: Tokens) -> None:
        starts = tokens.document_starts
        lengths = np.diff(starts, append=len(tokens)) - 1
        if len(starts) % 2:
            raise InputError(
                f"{len(starts)} documents are not pairs", where="text", cure="give lines of SOURCE<tab>TARGET"
            )
        if lengths.min() < 1:
            pair = int(lengths.argmin()) // 2
            what = f"pair {pair + 1:,} has a side without a token that the tokenizer knows"
            cure = "remove the pair, or choose another tokenizer (--data.tokenizer)"
            raise InputError(what, where="text", cure=cure)
        self.ids = tokens.ids
        self.source_starts, self.target_starts = starts[0::2], starts[1::2]
        self.source_lengths, self.target_lengths = lengths[0::2], lengths[1::2]

    def __len__(self) -> int:
        return len(self.source_starts)

    def by_length(self, pairs: Int64[np.ndarray, " n"], windows: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """Sort pairs by window, then target length, then source length: a decoder's padding costs more."""
        return pairs[np.lexsort((self.source_lengths[pairs], self.target_lengths[pairs], windows))]

    def read(self, pairs: Int64[np.ndarray, " batch"], rows: slice, end_of_text: int) -> PairBatch:
        """Return some rows of a batch of pairs, padded to the longest pair of the entire batch."""
        here = pairs[rows]
        sources = self._gather(
            self.source_starts[here], self.source_lengths[here], int(self.source_lengths[pairs].max())
        )
        time = int(self.target_lengths[pairs].max()) + 1
        ends = np.full((len(here), 1), end_of_text)
        targets = self._gather(self.target_starts[here], self.target_lengths[here], time)
        inputs = np.concatenate([ends, np.maximum(targets[:, :-1], 0)], axis=1)
        np.put_along_axis(targets, self.target_lengths[here][:, None], ends, axis=1)
        return PairBatch(torch.from_numpy(sources), torch.from_numpy(inputs), torch.from_numpy(targets))

    def _gather(
        self, starts: Int64[np.ndarray, " batch"], lengths: Int64[np.ndarray, " batch"], width: int
    ) -> Int64[np.ndarray, "batch width"]:
        columns = np.arange(width)
        places = np.minimum(starts[:, None] + columns, len(self.ids) - 1)
        return np.where(columns < lengths[:, None], self.ids[places].astype(np.int64), IGNORE_INDEX)


class PairBatches:
    """Training batches of pairs: the global batch of a step depends only on the seed and the step.

    Each pair is read once per epoch, in a new order each epoch. Within a window of 32 batches, pairs of similar length
    are batched together to reduce padding; the batches of a window are then read in random order. Each rank reads its
    rows.

    Attributes:
        tokens_per_epoch: targets per epoch.
        steps_per_epoch: a step also reads pairs of the next epoch, so this need not be an integer.
        longest: tokens of the longest source, and of the longest target with its end-of-text id.
    """

    def __init__(
        self, tokens: Tokens, *, batch_size: int, seed: int, end_of_text: int, rank: int = 0, world: int = 1
    ) -> None:
        """Find the pairs.

        Args:
            tokens: the training part; its documents are alternately sources and targets.
            batch_size: pairs per step over all ranks.
            seed: 0 <= seed < 2**64.
            end_of_text: the id that begins a target's inputs and ends its targets.
            rank: this process reads the pairs from rank * batch_size // world.
            world: number of processes.

        Raises:
            InputError: the documents are not pairs, or a document has no token.
        """
        self._pairs = _Pairs(tokens)
        self._batch_size, self._end_of_text = batch_size, end_of_text
        self._shuffling, self._mixing = Draws(seed, 0), Draws(seed, 1)
        self._rows = slice(rank * batch_size // world, (rank + 1) * batch_size // world)
        self._orders: dict[int, Int64[np.ndarray, " pairs"]] = {}
        self.tokens_per_epoch = int(self._pairs.target_lengths.sum()) + len(self._pairs)
        self.steps_per_epoch = Fraction(len(self._pairs), batch_size)
        self.longest = longest(tokens)

    def batch(self, step: int) -> PairBatch:
        """Return this rank's pairs of a step (from 0); independent of earlier calls."""
        epochs, places = np.divmod(step * self._batch_size + np.arange(self._batch_size), len(self._pairs))
        pairs = np.empty_like(places)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            pairs[here] = self._order(epoch)[places[here]]
        return self._pairs.read(pairs, self._rows, self._end_of_text)

    def describe(self) -> str:
        """Return the size of a step for a log."""
        return f"{self._batch_size} pairs"

    def _order(self, epoch: int) -> Int64[np.ndarray, " pairs"]:
        """Return an epoch's pairs in reading order."""
        if epoch not in self._orders:
            if len(self._orders) == _ORDERS:
                self._orders.clear()
            self._orders[epoch] = self._make_order(epoch)
        return self._orders[epoch]

    def _make_order(self, epoch: int) -> Int64[np.ndarray, " pairs"]:
        n, size = len(self._pairs), self._batch_size
        batches = (epoch * n + np.arange(n)) // size
        windows = batches // _WINDOW
        shuffled = np.argsort(self._shuffling.at(epoch, n), kind="stable")
        by_length = self._pairs.by_length(shuffled, windows)
        batches -= batches[0]
        keys = self._mixing.at(epoch, int(batches[-1]) + 1)
        # The first and the last batch of an epoch may be shared with the neighbouring epochs, so they are not moved.
        keys[0], keys[-1] = 0, np.iinfo(np.uint64).max
        return by_length[np.lexsort((keys[batches], windows))]


def pair_windows(tokens: Tokens, batch_size: int, end_of_text: int) -> Iterator[PairBatch]:
    """Yield every pair once, shortest first.

    Args:
        tokens: the evaluation text; its documents are alternately sources and targets.
        batch_size: pairs per batch; the last batch may have fewer.
        end_of_text: the id that begins a target's inputs and ends its targets.

    Raises:
        InputError: the documents are not pairs, or a document has no token.
    """
    pairs = _Pairs(tokens)
    order = pairs.by_length(np.arange(len(pairs)), np.zeros(len(pairs), np.int64))
    for first in range(0, len(order), batch_size):
        yield pairs.read(order[first : first + batch_size], slice(None), end_of_text)


def pair_texts(tokens: Tokens) -> list[tuple[list[int], list[int]]]:
    """Return the ids of each source and its target in text order, without end-of-text ids.

    Raises:
        InputError: the documents are not pairs, or a document has no token.
    """
    pairs = _Pairs(tokens)
    sides = zip(pairs.source_starts, pairs.source_lengths, pairs.target_starts, pairs.target_lengths, strict=True)
    return [(tokens.ids[a : a + n].tolist(), tokens.ids[b : b + m].tolist()) for a, n, b, m in sides]


def longest(tokens: Tokens) -> tuple[int, int]:
    """Return the tokens of the longest source, and of the longest target with its end-of-text id."""
    pairs = _Pairs(tokens)
    return int(pairs.source_lengths.max()), int(pairs.target_lengths.max()) + 1


def too_long(tokens: Tokens, block_size: int) -> int:
    """Count the pairs whose source, or target with its end-of-text id, has more than `block_size` tokens."""
    pairs = _Pairs(tokens)
    return int((np.maximum(pairs.source_lengths, pairs.target_lengths + 1) > block_size).sum())


def check_lengths(tokens: Tokens, block_size: int) -> None:
    """Check that every pair fits into the context window.

    Raises:
        InputError: a pair is longer than `block_size`.
    """
    count = too_long(tokens, block_size)
    if count:
        needed = max(longest(tokens))
        total, verb = len(tokens.document_starts) // 2, "pair does" if count == 1 else "pairs do"
        what = f"{count:,} of {total:,} {verb} not fit block_size={block_size}; the longest needs {needed}"
        raise InputError(what, where="text", cure=f"use --model.block-size {needed}, or remove the longer pairs")


def split_pairs(store: TokenStore, config: DataConfig, val_store: TokenStore | None = None) -> Split:
    """Split pairs into a training part, the first int((1 - val_fraction) n) pairs, and a validation part.

    The training part is longer if the rest would exceed val_tokens. `config.split` is ignored: a pair is never divided.

    Args:
        store: the pairs.
        config: `val_fraction` and `val_tokens` are used.
        val_store: separate validation pairs; all of `store` is then for training.

    Raises:
        InputError: the documents are not pairs, or a part would have no pair.
    """
    if val_store is not None:
        return Split(_part(store, 0, _count(store)), _part(val_store, 0, _count(val_store)))
    n = _count(store)
    # Decimal: in binary, (1 - val_fraction) n can be just below an integer.
    cut = int((1 - Decimal(str(config.val_fraction))) * n)
    # At least the number of pairs that are followed by more than val_tokens tokens (including their own).
    cut = max(cut, int((len(store.ids) - store.document_starts[0::2].astype(np.int64) > config.val_tokens).sum()))
    for name, size in (("training", cut), ("validation", n - cut)):
        if not size:
            cure = "give more pairs, or change --data.val-fraction or --data.val-tokens"
            raise InputError(f"the {name} part has no pair", where=f"{n:,} pair{'s' * (n != 1)}", cure=cure)
    return Split(_part(store, 0, cut), _part(store, cut, n))


def _count(store: TokenStore) -> int:
    if len(store.document_starts) % 2:
        raise InputError(
            f"{len(store.document_starts):,} documents are not pairs",
            where=str(store.path),
            cure="give lines of SOURCE<tab>TARGET",
        )
    return len(store.document_starts) // 2


def _part(store: TokenStore, first: int, last: int) -> Tokens:
    """Return the pairs with first <= index < last."""
    starts = np.append(store.document_starts.astype(np.int64), len(store.ids))
    begin, end = int(starts[2 * first]), int(starts[2 * last])
    return Tokens(store.ids[begin:end], starts[2 * first : 2 * last] - begin)
