"""Building blocks: norms, the MLP, positional encodings and the causal mean."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from gptloom.config.model import ModelConfig
from gptloom.model.cache import Context, LayerCache


def make_norm(config: ModelConfig) -> nn.Module:
    """LayerNorm (Ba et al. 2016, eps 1e-5), RMSNorm (Zhang and Sennrich 2019, eps 1e-6) or no norm."""
    if config.norm == "layernorm":
        return nn.LayerNorm(config.n_embd, bias=config.bias != "none")
    return nn.RMSNorm(config.n_embd, eps=1e-6) if config.norm == "rmsnorm" else nn.Identity()


class MLP(nn.Module):
    """Position-wise feed-forward network (Vaswani et al. 2017, section 3.3).

    SwiGLU (Shazeer 2020) has a second, gating projection. One matrix computes both; the gate is its first half.
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
        """Project up, apply the activation, project down."""
        out: Tensor = self.dropout(self.down(activate(self.up(x), self.kind)))
        return out


def activate(x: Float[Tensor, "*n h"], kind: str) -> Float[Tensor, "*n h2"]:
    """Apply the activation that `ModelConfig.mlp` names; swiglu halves the width."""
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
    """Mean over the current and all earlier positions: attention with equal weights, for the lecture."""

    def __init__(self, config: ModelConfig) -> None:
        """Build the optional output projection."""
        super().__init__()
        bias = config.bias != "none"
        self.out = nn.Linear(config.n_embd, config.n_embd, bias) if config.output_projection else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)

    def init_cache(self, batch: int, length: int, like: Tensor) -> LayerCache:
        """Running sum (b, 1, c). Its size does not depend on the length."""
        return {"total": like.new_zeros(batch, 1, like.shape[-1])}

    def forward(self, x: Float[Tensor, "b t c"], context: Context, cache: LayerCache | None) -> Float[Tensor, "b t c"]:
        """Compute the running mean; with a cache, start from its sum and store the new sum."""
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
        """The equal attention weights that correspond to the mean, (b, 1, t, s)."""
        positions = context.positions.expand(len(x), x.shape[1])
        keys = torch.arange(int(positions.max()) + 1 if remembers else x.shape[1], device=x.device)
        return ((keys <= positions[..., None]) / (positions[..., None] + 1))[:, None].to(x.dtype)


def sinusoids(length: int, width: int) -> Float[Tensor, "t c"]:
    """Sinusoidal position vectors, sines and cosines interleaved (Vaswani et al. 2017, section 3.5)."""
    angles = _angles(length, width, 10_000.0)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)


def rotary_table(length: int, width: int, theta: float) -> Float[Tensor, "2 t d"]:
    """Cosines and sines for `rotate`. Features i and i + width / 2 have the same angle."""
    angles = _angles(length, width, theta).repeat(1, 2)
    return torch.stack((angles.cos(), angles.sin()))


def rotate(x: Float[Tensor, "b h t d"], rotation: tuple[Tensor, Tensor]) -> Float[Tensor, "b h t d"]:
    """Rotate pairs of features by the angle of their position (Su et al. 2021).

    Feature i is paired with feature i + d / 2, as in Llama and Qwen.
    """
    cos, sin = rotation
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def rotation_at(table: Float[Tensor, "2 n d"], positions: Int[Tensor, "*b t"]) -> tuple[Tensor, Tensor]:
    """Cosines and sines at these positions, shaped to broadcast over heads."""
    cos, sin = table[0][positions], table[1][positions]
    return (cos[:, None], sin[:, None]) if positions.ndim == 2 else (cos, sin)


def _angles(length: int, width: int, theta: float) -> Tensor:
    """Angles position / theta ** (2 i / width), (length, width / 2); float64 keeps long contexts precise."""
    frequencies = theta ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
    return torch.outer(torch.arange(length, dtype=torch.float64), frequencies).float()
