"""Sampling: pure functions on logits (b, v), applied in a fixed order.

The order is: repetition penalty, temperature, top-k, top-p, min-p. Other programs use different orders (nanoGPT:
temperature, k; LitGPT: k, temperature, p; mlx-lm: p, min-p, k, temperature). This order is guaranteed and tested.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gptloom.config.run import SampleConfig


def choose(
    logits: Float[Tensor, "b v"], seen: Bool[Tensor, "b v"] | None, config: SampleConfig, uniforms: Float[Tensor, " b"]
) -> Int[Tensor, " b"]:
    """Choose one token per row.

    Args:
        logits: the model's logits of the next token.
        seen: True for tokens that have occurred in the row; needed only with a repetition penalty.
        config: sampling settings; temperature 0 takes the most probable token (the lowest id if several are equal).
        uniforms: one number in [0, 1) per row, which determines the draw.
    """
    if seen is not None and config.repetition_penalty != 1.0:
        logits = penalise(logits, seen, config.repetition_penalty)
    if config.temperature == 0.0:
        return logits.argmax(dim=-1)
    # The maximum is 0 and the type float64, so that a tiny temperature does not produce inf - inf.
    scores = (logits.double() - logits.amax(dim=-1, keepdim=True)) / config.temperature
    return draw(keep_likely(scores, config), uniforms)


def keep_likely(logits: Float[Tensor, "b v"], config: SampleConfig) -> Float[Tensor, "b v"]:
    """Apply top-k, then top-p, then min-p: set the other logits to minus infinity. At least one token is kept."""
    if config.top_k is not None:
        logits = keep_top_k(logits, config.top_k)
    if config.top_p is not None and config.top_p < 1.0:
        logits = keep_top_p(logits, config.top_p)
    if config.min_p is not None:
        logits = keep_min_p(logits, config.min_p)
    return logits


def penalise(logits: Float[Tensor, "b v"], seen: Bool[Tensor, "b v"], penalty: float) -> Float[Tensor, "b v"]:
    """Apply the repetition penalty (Keskar et al. 2019, section 4.1) to seen tokens.

    Positive logits are divided by the penalty, negative logits are multiplied by it.
    """
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def keep_top_k(logits: Float[Tensor, "b v"], k: int) -> Float[Tensor, "b v"]:
    """Keep exactly the k largest logits, even if several are equal (Fan et al. 2018)."""
    if k >= logits.shape[-1]:
        return logits
    top = logits.topk(k, dim=-1)
    return torch.full_like(logits, float("-inf")).scatter(-1, top.indices, top.values)


def keep_top_p(logits: Float[Tensor, "b v"], p: float) -> Float[Tensor, "b v"]:
    """Keep the smallest set of most probable tokens whose total probability reaches p (Holtzman et al. 2020)."""
    ordered = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = ordered.values.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    beyond = (before >= p).scatter(-1, ordered.indices, before >= p)
    beyond.scatter_(-1, ordered.indices[:, :1], False)
    return logits.masked_fill(beyond, float("-inf"))


def keep_min_p(logits: Float[Tensor, "b v"], p: float) -> Float[Tensor, "b v"]:
    """Keep tokens that are at least p times as probable as the most probable token (Nguyen et al. 2024)."""
    probabilities = logits.softmax(dim=-1)
    return logits.masked_fill(probabilities < p * probabilities.amax(dim=-1, keepdim=True), float("-inf"))


def draw(logits: Float[Tensor, "b v"], uniforms: Float[Tensor, " b"]) -> Int[Tensor, " b"]:
    """Return the token at which the cumulative probability exceeds the row's uniform number; never one with zero."""
    sums = logits.double().softmax(dim=-1).cumsum(dim=-1)
    aims = uniforms.to(sums)[:, None] * sums[:, -1:]
    return torch.searchsorted(sums, aims, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)


def is_plain(config: SampleConfig) -> bool:
    """Return True if `draw_plainly` supports these settings: no filters, no penalty, and no overflow in a division."""
    return (
        config.temperature > 1e-200
        and config.repetition_penalty == 1.0
        and config.top_k is None
        and (config.top_p is None or config.top_p == 1.0)
        and config.min_p is None
    )


def draw_plainly(logits: npt.NDArray[np.float32], temperature: float, uniforms: list[float]) -> list[int]:
    """Choose one token per row as `choose` does without penalty and filters, in NumPy, which has less overhead.

    Args:
        logits: (b, v).
        temperature: greater than 0.
        uniforms: one number in [0, 1) per row.
    """
    if len(uniforms) == 1:
        scores = logits[0].astype(np.float64)
        scores -= np.maximum.reduce(scores)
        scores /= temperature
        total = np.add.accumulate(np.exp(scores, scores))
        return [min(int(total.searchsorted(uniforms[0] * total[-1], side="right")), len(total) - 1)]
    scores = logits.astype(np.float64)
    scores -= np.maximum.reduce(scores, axis=1, keepdims=True)
    scores /= temperature
    sums = np.add.accumulate(np.exp(scores, scores), axis=1)
    below = np.add.reduce(sums <= np.array(uniforms)[:, None] * sums[:, -1:], axis=1, dtype=np.intp)
    return np.minimum(below, logits.shape[1] - 1).tolist()  # type: ignore[no-any-return]


def uniforms(seed: int, sample: int) -> Callable[[], float]:
    """Return a function that returns the next uniform number in [0, 1); they depend only on `seed` and `sample`."""
    return np.random.default_rng([seed, sample]).random
