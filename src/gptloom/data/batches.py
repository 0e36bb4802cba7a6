"""Batches of token ids.

Training batches are functions of (seed, step, rank); evaluation reads every target once. For encoders, some tokens are
masked (Devlin et al. 2019, section 3.1). Random numbers depend only on (seed, stream, index), in all versions of NumPy.
"""

from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int, Int64, UInt, UInt64

from gptloom.config.run import IGNORE_INDEX, Sampling
from gptloom.data.tokens import Tokens
from gptloom.errors import InputError


class Draws:
    """A stream of random 64-bit numbers for each index.

    The generator is Philox (Salmon et al. 2011) with key (seed, stream) and counter (0, index, 0, 0).
    """

    def __init__(self, seed: int, stream: int) -> None:
        """Set the seed (0 <= seed < 2**64) and the stream (a separate one for each purpose)."""
        self._generator = np.random.Philox(key=np.array([seed, stream], dtype=np.uint64))
        self._state = self._generator.state

    def at(self, index: int, count: int, *, first: int = 0) -> UInt64[np.ndarray, " count"]:
        """Return `count` numbers of an index's stream, starting at number `first`; independent of earlier calls."""
        # Setting a generator's state takes a fifth of the time of a new generator. Each counter value gives 4 numbers.
        self._state["state"]["counter"] = np.array([first // 4, index, 0, 0], dtype=np.uint64)
        self._generator.state = self._state
        return self._generator.random_raw(first % 4 + count)[first % 4 :]


_ORDERS = 2  # cached epoch orders: a batch may span two epochs


class Batch(NamedTuple):
    """Rows of token ids, and the target of each position.

    Attributes:
        inputs: token ids; padding is 0.
        targets: the id of the next token, or `IGNORE_INDEX` at positions without a target.
    """

    inputs: Int[torch.Tensor, "batch time"]
    targets: Int[torch.Tensor, "batch time"]


class Batches:
    """Training batches: the global batch of a step depends only on the seed and the step; each rank reads its rows.

    "random" draws window starts with replacement. "shuffled" divides the text into windows, with a different offset
    each epoch, and reads each window once per epoch in a new order. "documents" does the same with windows that end at
    the end of their document. If the text is shorter than a window, all windows are shorter.

    Attributes:
        time: length of the longest window.
        tokens_per_epoch: targets per epoch.
        steps_per_epoch: a step also reads targets of the next epoch, so this need not be an integer.
    """

    def __init__(
        self,
        tokens: Tokens,
        *,
        block_size: int,
        batch_size: int,
        seed: int,
        sampling: Sampling,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """Compute the windows.

        Args:
            tokens: the training part, at least 2 tokens.
            block_size: longest window, in tokens.
            batch_size: rows per step over all ranks.
            seed: 0 <= seed < 2**64.
            sampling: the method, see above.
            rank: this process reads the rows from rank * batch_size // world.
            world: number of processes.

        Raises:
            InputError: there is no window: the text has fewer than 2 tokens, or no document has 2.
        """
        if len(tokens) < 2:
            raise InputError(
                f"{len(tokens)} token cannot be trained on", where="training text", cure="give a longer text"
            )
        self._batch_size, self._sampling = batch_size, sampling
        self._starting, self._ordering = Draws(seed, 0), Draws(seed, 1)
        self._rows = slice(rank * batch_size // world, (rank + 1) * batch_size // world)
        self._orders: dict[int, Int64[np.ndarray, " windows"]] = {}
        self._length = n = len(tokens)
        self.time = min(block_size, n - 1)
        self._windows = max(1, (n - self.time) // self.time)
        self._starts = self._lengths = np.empty(0, np.int64)
        self.tokens_per_epoch = n - 1 if sampling == "random" else self._windows * self.time
        self.steps_per_epoch = Fraction(self.tokens_per_epoch, batch_size * self.time)
        if sampling == "documents":
            self._starts, self._lengths = _document_windows(tokens, block_size)
            self.time = int(self._lengths.max())
            self._windows = len(self._starts)
            self.tokens_per_epoch = int(self._lengths.sum())
            self.steps_per_epoch = Fraction(self._windows, batch_size)
        self._read = partial(_read, _all_windows(tokens.ids, self.time))

    def batch(self, step: int) -> Batch:
        """Return this rank's rows of a step (from 0); independent of earlier calls."""
        if self._sampling == "random":
            draws = self._starting.at(step, self._batch_size)[self._rows]
            return self._read((draws % np.uint64(self._length - self.time)).astype(np.int64))
        epoch, first = divmod(step * self._batch_size + self._rows.start, self._windows)
        windows = self._order(epoch)[first : first + self._rows.stop - self._rows.start]
        while (missing := self._rows.stop - self._rows.start - len(windows)) > 0:  # continue in the next epoch
            windows = np.concatenate((windows, self._order(epoch := epoch + 1)[:missing]))
        if self._sampling == "documents":
            return self._read(self._starts[windows], self._lengths[windows])
        return self._read(windows)

    def describe(self) -> str:
        """Return the size of a step for a log."""
        if self._sampling == "documents":
            return f"{self._batch_size} windows of up to {self.time} tokens"
        return f"{self._batch_size} x {self.time} tokens"

    def _order(self, epoch: int) -> Int64[np.ndarray, " windows"]:
        """Return an epoch's windows in reading order: window numbers for "documents", else window starts."""
        if epoch not in self._orders:
            draws = self._ordering.at(epoch, self._windows + 1)
            order = np.argsort(draws[1:], kind="stable")
            if self._sampling == "shuffled":
                slack = self._length - self._windows * self.time
                order = order * self.time + int(draws[0] % np.uint64(slack))
            if len(self._orders) == _ORDERS:
                self._orders.clear()
            self._orders[epoch] = order
        return self._orders[epoch]


def evaluation_windows(tokens: Tokens, block_size: int, batch_size: int) -> Iterator[Batch]:
    """Yield consecutive windows in which each of the n - 1 targets occurs exactly once.

    Args:
        tokens: the evaluation text, n >= 2 tokens.
        block_size: longest window, in tokens; the last window is padded.
        batch_size: windows per batch; the last batch may have fewer.
    """
    last = len(tokens) - 1
    time = min(block_size, last)
    windows = _all_windows(tokens.ids, time)
    for first in range(0, last, time * batch_size):
        starts = np.arange(first, min(last, first + time * batch_size), time)
        yield _read(windows, starts, np.minimum(time, last - starts))


def _all_windows(ids: UInt[np.ndarray, " tokens"], time: int) -> UInt[np.ndarray, "windows time_and_next"]:
    """Return a view of all windows of `time + 1` tokens; copying a row is faster than gathering single tokens."""
    return np.lib.stride_tricks.sliding_window_view(ids, time + 1)


def _read(
    windows: UInt[np.ndarray, "windows time_and_next"],
    starts: Int64[np.ndarray, " batch"],
    lengths: Int64[np.ndarray, " batch"] | None = None,
) -> Batch:
    """Return the windows at `starts`, padded after `lengths` targets; a padded window may end behind the last token."""
    if lengths is None:
        block = windows[starts]
        return Batch(torch.from_numpy(block[:, :-1].astype(np.int64)), torch.from_numpy(block[:, 1:].astype(np.int64)))
    last = len(windows) - 1
    block = windows[np.minimum(starts, last)]
    for row in np.flatnonzero(starts > last).tolist():
        block[row] = np.roll(block[row], int(last - starts[row]))
    padding = np.arange(block.shape[1] - 1) >= lengths[:, None]
    inputs, targets = block[:, :-1].astype(np.int64), block[:, 1:].astype(np.int64)
    np.copyto(inputs, 0, where=padding)
    np.copyto(targets, IGNORE_INDEX, where=padding)
    return Batch(torch.from_numpy(inputs), torch.from_numpy(targets))


def _document_windows(
    tokens: Tokens, block_size: int
) -> tuple[Int64[np.ndarray, " windows"], Int64[np.ndarray, " windows"]]:
    """Return the starts and numbers of targets of consecutive windows, each within one document."""
    targets = np.maximum(np.diff(tokens.document_starts, append=len(tokens)) - 1, 0)
    counts = -(-targets // block_size)
    document = np.repeat(np.arange(len(counts)), counts)
    if not len(document):
        raise InputError("no document has 2 tokens", where="training text", cure="use another --data.sampling")
    offsets = (np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)) * block_size
    return tokens.document_starts[document] + offsets, np.minimum(block_size, targets[document] - offsets)


_STREAM = 2  # random stream of the masks; the windows use 0 and 1


class MaskedBatches:
    """Training batches with masked tokens: a function of (seed, step), as the windows are."""

    def __init__(self, batches: Batches, *, mask: int, fraction: float, seed: int, first: int = 0) -> None:
        """Wrap the batches.

        Args:
            batches: source of the windows.
            mask: id of the mask token.
            fraction: share of tokens to mask.
            seed: seed of the masks.
            first: index of this rank's first row in the global batch.
        """
        self._batches, self._mask, self._fraction, self._first = batches, mask, fraction, first
        self._draws = Draws(seed, _STREAM)
        self.tokens_per_epoch, self.steps_per_epoch = batches.tokens_per_epoch, batches.steps_per_epoch
        self.describe = batches.describe

    def batch(self, step: int) -> Batch:
        """Return inputs with masked tokens; the targets are the masked tokens only."""
        return _hide(self._batches.batch(step), self._mask, self._fraction, self._draws, step, self._first)


def masked_windows(tokens: Tokens, block_size: int, batch_size: int, *, mask: int, fraction: float) -> Iterator[Batch]:
    """Yield the windows of `evaluation_windows`, always with the same tokens masked."""
    draws = Draws(0, _STREAM)
    for index, batch in enumerate(evaluation_windows(tokens, block_size, batch_size)):
        yield _hide(batch, mask, fraction, draws, index)


def _hide(batch: Batch, mask: int, fraction: float, draws: Draws, index: int, first: int = 0) -> Batch:
    """Mask tokens; positions after a window's end become -1, the padding that encoders ignore."""
    drawn = draws.at(index, batch.inputs.numel(), first=first * batch.inputs.shape[1])
    real = batch.targets != IGNORE_INDEX
    hidden = torch.from_numpy(drawn < np.uint64(fraction * 2**64)).view_as(real) & real
    inputs = torch.where(hidden, mask, batch.inputs).where(real, -1)
    return Batch(inputs, torch.where(hidden, batch.inputs, IGNORE_INDEX))
