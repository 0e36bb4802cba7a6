"""Mutants of the position-wise parts (norms, feed-forward layers), and of single functions and embeddings."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptloom.reference.lecture import FeedForward, LayerNorm
from gptloom.reference.modern import RMSNorm, SwiGLU
from gptloom.reference.steps import Embedded, Positioned, average_by_matrix
from gptloom.studies.check.mutants import Mutant, mutants


def normalise(module: nn.Module, x: Tensor, slip: str = "") -> Tensor:
    """LayerNorm or RMSNorm of x (..., c) with one mistake; see `mutants.py`."""
    assert isinstance(module, LayerNorm | RMSNorm)
    axes = {"norm-axis:time": [1], "norm-axis:batch": [0], "norm-axis:both": [1, 2], "norm-axis:all": [0, 1, 2]}
    axis = axes.get(slip, [-1])
    centred = isinstance(module, LayerNorm) ^ (slip == "norm-centre")
    shifted = x - x.mean(dim=axis, keepdim=True) if centred else x
    variance = (shifted**2).mean(dim=axis, keepdim=True)
    if slip == "norm-unbiased":
        variance = variance * x.shape[-1] / (x.shape[-1] - 1)
    eps = {"missing-eps": 0.0, "eps-different:6": 1e-6, "eps-different:8": 1e-8, "eps-different:5": 1e-5}.get(
        slip, module.eps
    )
    size = variance.sqrt() + eps if slip == "eps-outside-root" else torch.sqrt(variance + eps)
    if slip == "norm-without-root":
        size = variance + eps
    if slip == "norm-without-division":
        size = torch.ones_like(size)
    out = shifted / size
    bias = module.bias if isinstance(module, LayerNorm) else torch.zeros_like(module.gain)
    if slip == "gain-unused":
        return out + bias
    if slip == "bias-unused":
        return out * module.gain
    return (out + bias) * module.gain if slip == "gain-after-bias" else out * module.gain + bias


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "activation-missing": lambda x: x,
    "activation-other:relu": F.relu,
    "activation-other:gelu": F.gelu,
    "activation-other:gelu-tanh": lambda x: F.gelu(x, approximate="tanh"),
    "activation-other:silu": F.silu,
    "activation-other:tanh": torch.tanh,
    "activation-other:sigmoid": torch.sigmoid,
    "activation-other:quick-gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "activation-other:leaky": F.leaky_relu,
    "activation-other:relu2": lambda x: F.relu(x) ** 2,
}


def think(module: nn.Module, x: Tensor, slip: str = "") -> Tensor:
    """The feed-forward layer of x (..., c) with one mistake."""
    assert isinstance(module, FeedForward)
    if slip == "activation-place:end":
        return F.relu(module.down(module.up(x)))
    out: Tensor = module.down(ACTIVATIONS.get(slip, F.relu)(module.up(x)))
    return F.relu(out) if slip == "activation-place:twice" else x + out if slip == "residual-inside" else out


def gated(module: nn.Module, x: Tensor, slip: str = "") -> Tensor:
    """SwiGLU of x (..., c) with one mistake."""
    assert isinstance(module, SwiGLU)
    gate, up = module.gate(x), module.up(x)
    if slip == "gate-swapped":
        gate, up = up, gate
    opened = ACTIVATIONS.get(slip, F.silu)(gate)
    out: Tensor = module.down(opened + up if slip == "gate-added" else opened * up)
    return out


def average(_reference: object, x: Tensor, slip: str = "") -> Tensor:
    """The causal mean of x (b, t, c) with one mistake."""
    t = x.shape[1]
    past = torch.tril(torch.ones(t, t))
    if slip == "missing-division":
        return past @ x
    if slip == "mask-sees-future":
        past = torch.ones(t, t)
    if slip == "mask-upside-down":
        past = past.T
    if slip == "mask-off-by-one":
        past = torch.ones(t, t).tril(1)
    if slip.startswith("mask-hides-self"):
        past = past.tril(-1)
    if slip == "mean-fixed-length":
        return past @ x / t
    if slip == "mean-axis:rows":
        return past / past.sum(dim=0, keepdim=True) @ x
    if slip == "mean-axis:batch":
        return x.cumsum(dim=0) / torch.arange(1, len(x) + 1)[:, None, None]
    if slip == "mask-fill":
        return past.softmax(dim=-1) @ x
    total = past.sum(dim=1, keepdim=True)
    return past / (total.clamp(min=1) if slip == "mask-hides-self" else total) @ x


def embed(module: nn.Module, ids: Tensor, slip: str = "") -> Tensor:
    """The model of token and position embeddings with one mistake; ids (b, t) to logits (b, t, vocab)."""
    assert isinstance(module, Positioned)
    tokens, t = module.token_table(ids), ids.shape[1]
    table = module.position_table.weight[:t]
    if slip == "positions-missing":
        vectors = tokens
    elif slip == "positions-multiplied":
        vectors = tokens * table
    elif slip == "positions-backwards":
        vectors = tokens + table.flip(0)
    elif slip == "positions-shifted":
        vectors = tokens + module.position_table.weight.roll(-1, 0)[:t]
    elif slip == "positions-by-token":
        vectors = tokens + module.position_table(ids % module.position_table.num_embeddings)
    else:
        vectors = tokens + table
    logits: Tensor = module.head(vectors)
    return logits


_EVERY_NORM = (
    "norm-axis:time", "norm-axis:batch", "norm-axis:both", "norm-axis:all", "norm-centre", "missing-eps",
    "eps-outside-root", "norm-without-root", "norm-without-division", "gain-unused", "norm-unbiased",
)  # fmt: skip
LAYER_NORM = mutants(normalise, *_EVERY_NORM, "eps-different:6", "eps-different:8", "bias-unused", "gain-after-bias")
RMS_NORM = mutants(normalise, *_EVERY_NORM, "eps-different:5", "eps-different:8")
FEED_FORWARD = mutants(
    think,
    *(set(ACTIVATIONS) - {"activation-other:relu"}),
    "activation-place:end",
    "activation-place:twice",
    "residual-inside",
)
SWIGLU = mutants(gated, *(set(ACTIVATIONS) - {"activation-other:silu"}), "gate-swapped", "gate-added")
GELU: dict[str, Mutant] = {
    slip: lambda _m, x, act=act: act(x)  # type: ignore[misc]
    for slip, act in ACTIVATIONS.items()
    if slip != "activation-other:gelu-tanh"
}
AVERAGE = mutants(
    average, "missing-division", "mask-sees-future", "mask-upside-down", "mask-off-by-one", "mask-hides-self",
    "mask-hides-self:nan", "mean-fixed-length", "mean-axis:rows", "mean-axis:batch", "mask-fill",
)  # fmt: skip
POSITIONS = mutants(
    embed, "positions-missing", "positions-multiplied", "positions-backwards", "positions-shifted", "positions-by-token"
)


def _averaged_embedding(module: nn.Module, ids: Tensor) -> Tensor:
    assert isinstance(module, Embedded)
    logits: Tensor = module.head(average_by_matrix(module.token_table(ids)))
    return logits


EMBEDDING: dict[str, Mutant] = {"averaging-too-early": _averaged_embedding}
