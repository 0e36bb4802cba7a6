"""What a module does, found out by changing its input: who sees whom."""

from collections.abc import Callable

import torch
from jaxtyping import Bool
from torch import Tensor


def dependence(forward: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Bool[Tensor, "t s"], bool]:
    """Which output position changes with which input position in the first text of a batch, and whether the other texts change.

    Args:
        forward: (b, t, ...) to (b, t, ...), without randomness.
        x: floating-point input (b, t, c), or ids (b, t).
    """
    base = forward(x)
    t = x.shape[1]
    seen = torch.zeros(t, t, dtype=torch.bool)
    leaks = False
    for source in range(t):
        changed = x.clone()
        changed[0, source] = (changed[0, source] + 1) % 5 if not x.is_floating_point() else changed[0, source].flip(-1) + 1
        # NaN equals NaN here: a row that is never a number depends on nothing.
        moved = ~torch.isclose(forward(changed), base, atol=1e-6, rtol=1e-6, equal_nan=True).flatten(2).all(dim=-1)
        seen[:, source] = moved[0]
        leaks = leaks or bool(moved[1:].any())
    return seen, leaks


def name_dependence(seen: Bool[Tensor, "t s"], leaks: bool, *, causal: bool) -> str:
    """The finding that this dependence amounts to, or an empty string: who may see whom is as it should be."""
    t = len(seen)
    below, above = torch.ones(t, t).tril(-1).bool(), torch.ones(t, t).triu(1).bool()
    if leaks:
        return "batch-mixed"
    if not causal:
        return "positions-mixed" if bool((seen & (below | above)).any()) else ""
    if bool((seen & above).any()):
        if not (seen & below).any():
            return "mask-upside-down"
        return "mask-off-by-one" if not (seen & above.triu(2)).any() else "mask-sees-future"
    if not seen.diagonal().all():
        return "mask-hides-self"
    return "mask-hides-past" if bool((below & ~seen).any()) else ""
