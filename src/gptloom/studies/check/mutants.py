"""Mutants: references with one known mistake. If a learner's output equals a mutant's, the mistake is known.

Each function recomputes a class of `gptloom.reference` from its weights, with the mistake that `slip` names. Without a
slip, it equals the reference. The descriptions of the slips are in `studies/check/__init__.py`.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptloom.reference.lecture import Block, Head
from gptloom.reference.modern import GroupedAttention, rotate
from gptloom.reference.steps import ResidualBlock

Mutant = Callable[[Any, Tensor], Tensor]
"""A function of (the reference module or function, the input) that returns the output with the mistake."""

SCALES: dict[str, Callable[[int, int], float]] = {
    "missing-scale": lambda _d, _c: 1.0,
    "scale-wrong-width": lambda _d, c: c**-0.5,
    "scale-multiplied": lambda d, _c: d**0.5,
    "scale-without-root": lambda d, _c: 1 / d,
}
MASKS: dict[str, Callable[[Tensor], Tensor]] = {
    "mask-sees-future": lambda ones: ones,
    "mask-upside-down": torch.triu,
    "mask-upside-down:strict": lambda ones: ones.triu(1),
    "mask-off-by-one": lambda ones: ones.tril(1),
    "mask-hides-self": lambda ones: ones.tril(-1),
    "mask-hides-self:finite": lambda ones: ones.tril(-1),
}
ORDER = (
    "softmax-axis",
    "softmax-axis:batch",
    "missing-softmax",
    "mask-after-softmax",
    "mask-fill",
    "query-key-swapped",
)
HEADS = (
    "heads-mixed:reversed",
    "heads-mixed:interleaved",
    "heads-mixed:split",
    "heads-mixed:join",
    "heads-mixed:both",
    "heads-mixed:between",
    "heads-mixed:strided",
)
QK_NORM = ("missing-qk-norm", "qk-norm-after-rotation", "missing-rotation", "rotation-interleaved", "values-rotated")
BLOCKS = (
    "missing-residual",
    "missing-residual:attention",
    "missing-residual:mlp",
    "norm-post",
    "norm-pre",
    "norm-on-stream",
    "norm-outside",
    "missing-norm",
    "missing-norm:attention",
    "missing-norm:mlp",
    "norms-swapped",
    "halves-swapped",
    "halves-parallel",
)


def weigh(query: Tensor, key: Tensor, n_embd: int, scale: float, slip: str = "") -> Tensor:
    """Attention weights (..., t, t) of queries and keys (..., t, d); `scale` is used unless the slip replaces it."""
    t, d = query.shape[-2:]
    if slip == "query-key-swapped":
        query, key = key, query
    scores = query @ key.transpose(-2, -1) * (SCALES[slip](d, n_embd) if slip in SCALES else scale)
    ones = torch.ones(t, t, dtype=torch.bool)
    past = MASKS[slip](ones) if slip in MASKS else ones.tril()
    if slip == "mask-after-softmax":
        return F.softmax(scores, dim=-1) * past
    if slip == "missing-softmax":
        return scores * past
    fill = {"mask-fill": 0.0, "mask-hides-self:finite": -1e9}.get(slip, float("-inf"))
    return F.softmax(scores.masked_fill(~past, fill), dim={"softmax-axis": -2, "softmax-axis:batch": 0}.get(slip, -1))


@dataclass(frozen=True)
class _Parts:
    """The weights of an attention layer, (heads, head_size, n_embd) each."""

    query: Tensor
    key: Tensor
    value: Tensor
    projection: nn.Module | None
    scale: float


def _stack(attention: nn.Module, *names: str) -> Tensor:
    return torch.stack([p.detach() for name, p in attention.named_parameters() if set(names) & set(name.split("."))])


def _parts(attention: nn.Module) -> _Parts:
    query, key, value = (
        _stack(attention, *names) for names in (("query", "queries"), ("key", "keys"), ("value", "values"))
    )
    scale = next((layer.scale for layer in attention.modules() if isinstance(layer, Head)), query.shape[1] ** -0.5)
    return _Parts(query, key, value, getattr(attention, "projection", None), scale)


def attention(module: nn.Module, x: Tensor, slip: str = "") -> Tensor:
    """One head, several heads or grouped attention with one mistake; (b, t, c) to (b, t, c) or (b, t, head_size)."""
    parts = _parts(module)
    c = x.shape[-1]
    query, key, value = (_split(x, weight, slip) for weight in (parts.query, parts.key, parts.value))
    if isinstance(module, GroupedAttention):
        query, key, value = _turn(module, query, key, value, slip)
    if slip == "heads-mixed:between":  # a missing transpose: the heads attend to each other
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
    out = weigh(query, key, c, parts.scale, slip) @ value
    if slip == "heads-mixed:between":
        out = out.transpose(1, 2)
    joined = _join(out, slip)
    return joined if parts.projection is None or slip == "missing-projection" else parts.projection(joined)


def _split(x: Tensor, weight: Tensor, slip: str) -> Tensor:
    (b, t, _), (h, d, _) = x.shape, weight.shape
    flat = x @ weight.flatten(0, 1).T  # (b, t, h d)
    if slip in ("heads-mixed:split", "heads-mixed:both"):
        return flat.reshape(b, h, t, d)
    if slip == "heads-mixed:strided":
        return flat.reshape(b, t, d, h).permute(0, 3, 1, 2)
    return flat.reshape(b, t, h, d).transpose(1, 2)


def _join(out: Tensor, slip: str) -> Tensor:
    b, h, t, d = out.shape
    if slip in ("heads-mixed:join", "heads-mixed:both"):
        return out.reshape(b, t, h * d)
    if slip == "heads-mixed:interleaved":
        return out.permute(0, 2, 3, 1).flatten(2)
    return (out.flip(1) if slip == "heads-mixed:reversed" else out).transpose(1, 2).flatten(2)


def _turn(
    module: GroupedAttention, query: Tensor, key: Tensor, value: Tensor, slip: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Apply norms and rotation, and repeat shared keys and values."""
    query, key = (
        _prepare(query, module.query_norm, module.theta, slip),
        _prepare(key, module.key_norm, module.theta, slip),
    )
    value = _rotated(value, module.theta, slip) if slip == "values-rotated" else value
    if slip == "groups-mixed":
        return query, key.repeat(1, module.sharing, 1, 1), value.repeat(1, module.sharing, 1, 1)
    return query, key.repeat_interleave(module.sharing, dim=1), value.repeat_interleave(module.sharing, dim=1)


def _prepare(part: Tensor, norm: nn.Module, theta: float, slip: str) -> Tensor:
    if slip == "missing-qk-norm":
        return _rotated(part, theta, slip)
    out: Tensor = (
        norm(_rotated(part, theta, slip)) if slip == "qk-norm-after-rotation" else _rotated(norm(part), theta, slip)
    )
    return out


def _rotated(part: Tensor, theta: float, slip: str) -> Tensor:
    if slip == "missing-rotation":
        return part
    flat = part.flatten(0, 1)
    return (turn(flat, slip) if slip == "rotation-interleaved" else rotate(flat, theta)).view_as(part)


def block(module: nn.Module, x: Tensor, slip: str = "", *, post: bool = False) -> Tensor:
    """A block with one mistake in its residual structure or its attention; x (b, t, c)."""
    assert isinstance(module, Block | ResidualBlock)
    normed = isinstance(module, Block)
    norm1, norm2 = (module.norm1, module.norm2) if isinstance(module, Block) else (nn.Identity(), nn.Identity())
    if slip == "norms-swapped":
        norm1, norm2 = norm2, norm1
    norm1 = nn.Identity() if slip in ("missing-norm", "missing-norm:attention") else norm1
    norm2 = nn.Identity() if slip in ("missing-norm", "missing-norm:mlp") else norm2
    inner = "" if slip in BLOCKS else slip
    halves: list[tuple[Callable[[Tensor], Tensor], nn.Module, str]] = [
        (lambda x: attention(module.attention, x, inner), norm1, "attention"),
        (lambda x: module.feed_forward(x), norm2, "mlp"),
    ]
    if slip == "halves-swapped":
        halves.reverse()
    if slip == "halves-parallel" and not post:
        return x + sum(branch(norm(x)) for branch, norm, _ in halves)
    for branch, norm, name in halves:
        adds = slip not in ("missing-residual", f"missing-residual:{name}")
        before = x
        if slip == "norm-on-stream" and normed:
            before = norm(x)
            x = before + branch(before)
        elif slip == "norm-outside":
            x = before + norm(branch(before))
        elif (post or slip == "norm-post") and slip != "norm-pre":
            x = norm(before + branch(before)) if adds else norm(branch(before))
        else:
            x = before + branch(norm(before)) if adds else branch(norm(before))
    return x


def turn(x: Tensor, slip: str = "") -> Tensor:
    """`rotate` of x (n, t, d) with one mistake."""
    t, d = x.shape[1:]
    exponent = torch.arange(0, d, 2, dtype=torch.float64) / (2 * d if slip == "rotation-speeds" else d)
    places = torch.arange(t, dtype=torch.float64) + (1 if slip == "rotation-starts-at-one" else 0)
    angles = torch.outer(places, 10_000.0**-exponent).to(x.dtype)
    sin, cos = angles.sin() * (-1 if slip == "rotation-backwards" else 1), angles.cos()
    if slip == "rotation-interleaved":
        first, second = x[..., ::2], x[..., 1::2]
        return torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-1).flatten(-2)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def rescaled(reference: nn.Module, slip: str) -> nn.Module | None:
    """A copy of a reference with the slip's scale in its heads, to find a second mistake; None if it has no heads."""
    copied = copy.deepcopy(reference)
    heads = [layer for layer in copied.modules() if isinstance(layer, Head)]
    for head in heads:
        d, c = head.query.weight.shape
        head.scale = SCALES[slip](d, c)
    return copied if heads else None


def mutants(run: Callable[[Any, Tensor, str], Tensor], *slips: str) -> dict[str, Mutant]:
    """One mutant per slip, by name."""
    return {slip: lambda module, x, slip=slip: run(module, x, slip) for slip in slips}  # type: ignore[misc]


ONE_HEAD = mutants(attention, *SCALES, *MASKS, *ORDER)
MULTI_HEAD = ONE_HEAD | mutants(attention, *HEADS)
WITH_PROJECTION = MULTI_HEAD | mutants(attention, "missing-projection")
QK_NORMED = WITH_PROJECTION | mutants(attention, *QK_NORM)
GROUPED = QK_NORMED | mutants(attention, "groups-mixed")
RESIDUAL_BLOCK = {slip: m for slip, m in mutants(block, *BLOCKS, *WITH_PROJECTION).items() if "norm" not in slip}
PRE_NORM_BLOCK = {slip: m for slip, m in mutants(block, *BLOCKS, *WITH_PROJECTION).items() if slip != "norm-pre"}
POST_NORM_BLOCK = {
    slip: m
    for slip, m in mutants(lambda module, x, slip: block(module, x, slip, post=True), *BLOCKS, *WITH_PROJECTION).items()
    if slip not in ("norm-post", "halves-parallel")
}
ROTATION = mutants(
    lambda _m, x, slip: turn(x, slip),
    "rotation-interleaved",
    "rotation-backwards",
    "rotation-starts-at-one",
    "rotation-speeds",
) | {"missing-rotation": lambda _m, x: x}
