"""Normalisation, the feed-forward layer, positions, and the causal mean."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from gptloom.config.model import ModelConfig
from gptloom.model.cache import Context, LayerCache


def make_norm(config: ModelConfig) -> nn.Module:
    """LayerNorm (Ba et al. 2016, eps 1e-5), RMSNorm (Zhang and Sennrich 2019, eps 1e-6), or nothing."""
    if config.norm == "layernorm":
        return nn.LayerNorm(config.n_embd, bias=config.bias != "none")
    return nn.RMSNorm(config.n_embd, eps=1e-6) if config.norm == "rmsnorm" else nn.Identity()


class MLP(nn.Module):
    """Two matrices with an activation between them, at every position alike (Vaswani et al. 2017, section 3.3).

    SwiGLU (Shazeer 2020) multiplies by a second, gating projection; both come out of one matrix, the gate first.
    """

    def __init__(self, config: ModelConfig) -> None:
        """Build the two matrices."""
        super().__init__()
        bias, hidden = config.bias != "none", config.hidden_width
        self.kind = config.mlp
        self.up = nn.Linear(config.n_embd, hidden * (2 if self.kind == "swiglu" else 1), bias=bias)
        self.down = nn.Linear(hidden, config.n_embd, bias=bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Float[Tensor, "b t c"]) -> Float[Tensor, "b t c"]:
        """Widen, activate, narrow."""
        out: Tensor = self.dropout(self.down(activate(self.up(x), self.kind)))
        return out


def activate(x: Float[Tensor, "*n h"], kind: str) -> Float[Tensor, "*n h2"]:
    """The non-linearity of an MLP by its name in `ModelConfig.mlp`; swiglu halves the width."""
    match kind:
        case "swiglu":
            gate, value = x.chunk(2, dim=-1)
            return F.silu(gate) * value
        case "relu":
            return F.relu(x)
        case "relu2":
            return F.relu(x).square()
        case "gelu":
            return F.gelu(x)
        case _:
            return F.gelu(x, approximate="tanh")


class CausalMean(nn.Module):
    """Each position receives the mean of itself and all before it: attention with equal weights and nothing to learn but a projection."""

    def __init__(self, config: ModelConfig) -> None:
        """Build the optional output projection."""
        super().__init__()
        self.out = (
            nn.Linear(config.n_embd, config.n_embd, bias=config.bias != "none")
            if config.output_projection
            else nn.Identity()
        )
        self.dropout = nn.Dropout(config.dropout)

    def init_cache(self, batch: int, length: int, like: Tensor) -> LayerCache:
        """The running sum (b, 1, c); a mean needs no more memory than that, however long the text."""
        return {"total": like.new_zeros(batch, 1, like.shape[-1])}

    def forward(self, x: Float[Tensor, "b t c"], context: Context, cache: LayerCache | None) -> Float[Tensor, "b t c"]:
        """Average; when there is a cache, go on from its sum and leave the new one there."""
        sums = x.cumsum(dim=1)
        if cache is not None:
            begun = (context.positions[..., :1] > 0)[..., None]
            sums = sums + torch.where(begun, cache["total"], 0.0)
            rows = torch.arange(len(x), device=x.device)
            last = torch.tensor(context.counts or [x.shape[1]] * len(x), device=x.device)
            kept = sums[rows, (last - 1).clamp(min=0)][:, None]
            cache["total"].copy_(torch.where((last > 0)[:, None, None], kept, cache["total"]))
        if context.trace is not None:
            context.trace.attention.append(self._weights(context, cache is not None, x))
        return self.dropout(self.out(sums / (context.positions + 1)[..., None]))  # type: ignore[no-any-return]

    def _weights(self, context: Context, remembers: bool, x: Tensor) -> Tensor:
        """The equal weights that the mean stands for, (b, 1, t, s)."""
        positions = context.positions.expand(len(x), x.shape[1])
        keys = torch.arange(int(positions.max()) + 1 if remembers else x.shape[1], device=x.device)
        return ((keys <= positions[..., None]) / (positions[..., None] + 1))[:, None].to(x.dtype)


def sinusoids(length: int, width: int) -> Float[Tensor, "t c"]:
    """Sines and cosines of geometrically spaced wavelengths, interleaved (Vaswani et al. 2017, section 3.5)."""
    angles = _angles(length, width, 10_000.0)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)


def rotary_table(length: int, width: int, theta: float) -> Float[Tensor, "2 t d"]:
    """Cosines and sines for `rotate`, each angle twice: feature i turns together with feature i + width / 2."""
    angles = _angles(length, width, theta).repeat(1, 2)
    return torch.stack((angles.cos(), angles.sin()))


def rotate(x: Float[Tensor, "b h t d"], rotation: tuple[Tensor, Tensor]) -> Float[Tensor, "b h t d"]:
    """Turn each pair of features by its position's angle (Su et al.

    2021), in the half-split pairing of Llama and Qwen.
    """
    cos, sin = rotation
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def rotation_at(table: Float[Tensor, "2 n d"], positions: Int[Tensor, "*b t"]) -> tuple[Tensor, Tensor]:
    """The table's cosines and sines at these positions, shaped to broadcast over heads."""
    cos, sin = table[0][positions], table[1][positions]
    return (cos[:, None], sin[:, None]) if positions.ndim == 2 else (cos, sin)


def _angles(length: int, width: int, theta: float) -> Tensor:
    """Angles position / theta ** (2 i / width), in float64 so that long contexts keep their precision; (length, width / 2)."""
    frequencies = theta ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
    return torch.outer(torch.arange(length, dtype=torch.float64), frequencies).float()
