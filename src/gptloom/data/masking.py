"""Masked tokens: what an encoder learns from, since it sees everything else (Devlin et al. 2019, section 3.1)."""

from collections.abc import Iterator

import numpy as np
import torch

from gptloom.config import IGNORED
from gptloom.data.batches import Batch, Batches, evaluation_windows
from gptloom.data.draws import Draws
from gptloom.data.tokens import Tokens

_STREAM = 2  # of the seed's random numbers; the windows have 0 and 1


class MaskedBatches:
    """Training windows in which some tokens are hidden: a function of (seed, step), like the windows themselves."""

    def __init__(self, batches: Batches, *, mask: int, fraction: float, seed: int, first: int = 0) -> None:
        """Wrap the windows.

        Args:
            batches: where they come from.
            mask: the id that hides a token.
            fraction: share of the tokens that are hidden.
            seed: of the choice.
            first: rows of the global batch that other ranks have before this one's.
        """
        self._batches, self._mask, self._fraction, self._first = batches, mask, fraction, first
        self._draws = Draws(seed, _STREAM)
        self.tokens_per_epoch = batches.tokens_per_epoch

    def batch(self, step: int) -> Batch:
        """Inputs with hidden tokens, and those tokens as the only targets."""
        return _hide(self._batches.batch(step), self._mask, self._fraction, self._draws, step, self._first)


def masked_windows(tokens: Tokens, block_size: int, batch_size: int, *, mask: int, fraction: float) -> Iterator[Batch]:
    """The fixed windows of an evaluation, always with the same tokens hidden."""
    draws = Draws(0, _STREAM)
    for index, batch in enumerate(evaluation_windows(tokens, block_size, batch_size)):
        yield _hide(batch, mask, fraction, draws, index)


def _hide(batch: Batch, mask: int, fraction: float, draws: Draws, index: int, first: int = 0) -> Batch:
    """Hide tokens; places behind a window's end become padding, which an encoder does not look at."""
    drawn = draws.at(index, batch.inputs.numel(), first=first * batch.inputs.shape[1])
    real = batch.targets != IGNORED
    hidden = torch.from_numpy(drawn < np.uint64(fraction * 2**64)).view_as(real) & real
    inputs = torch.where(hidden, mask, batch.inputs).where(real, -1)
    return Batch(inputs, torch.where(hidden, batch.inputs, IGNORED))
