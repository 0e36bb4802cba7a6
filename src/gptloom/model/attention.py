"""Multi-head self-attention and cross-attention, with a key-value cache (Vaswani et al. 2017, section 3.2)."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from gptloom.config.model import ModelConfig
from gptloom.model.cache import Context, EncoderOutput, LayerCache
from gptloom.model.layers import rotate


class Heads(nn.Module):
    """Base class of self-attention and cross-attention: the attention itself. Subclasses add the projections."""

    def __init__(self, config: ModelConfig) -> None:
        """Read the number of heads, their width, the scale and the dropout."""
        super().__init__()
        self.n_head, self.n_kv_head, self.width = config.n_head, config.kv_heads, config.width_per_head
        self.scale = (self.width if config.score_scale == "head" else config.n_embd) ** -0.5
        self.drop_weights = config.dropout if config.attn_dropout is None else config.attn_dropout

    def attend(
        self,
        query: Float[Tensor, "b h t d"],
        key: Float[Tensor, "b g s d"],
        value: Float[Tensor, "b g s d"],
        mask: Bool[Tensor, "b 1 _ s"] | None,
        causal: bool,
        traced: list[Tensor] | None,
    ) -> Float[Tensor, "b t hd"]:
        """Compute attention for all heads and concatenate them.

        A trace needs the attention weights. Then they are computed explicitly; otherwise the fused kernel is used.

        Args:
            query: (b, n_head, t, head_size).
            key: (b, n_kv_head, s, head_size).
            value: (b, n_kv_head, s, head_size).
            mask: True where a query may attend to a key; None for no mask or the plain causal mask.
            causal: if there is no mask, apply the causal mask.
            traced: list to which the weights (b, h, t, s) are appended, or None.
        """
        drop = self.drop_weights if self.training else 0.0
        if traced is None:
            causal = mask is None and causal
            gqa = key.shape[1] != query.shape[1]
            found = F.scaled_dot_product_attention(
                query, key, value, attn_mask=mask, dropout_p=drop, is_causal=causal, scale=self.scale, enable_gqa=gqa
            )
        else:
            weights = attention_weights(query, key, mask, causal, self.scale)
            traced.append(weights.detach())
            found = F.dropout(weights, drop) @ value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)
        return found.transpose(1, 2).flatten(2)


class Attention(Heads):
    """Self-attention; n_head / n_kv_head query heads share one key-value head.

    Sources: Vaswani et al. 2017, section 3.2; grouped heads: Ainslie et al. 2023.
    """

    def __init__(self, config: ModelConfig) -> None:
        """Build one matrix for queries, keys and values (in this order), and the output projection."""
        super().__init__(config)
        self.qkv = nn.Linear(config.n_embd, (self.n_head + 2 * self.n_kv_head) * self.width, bias=config.bias == "all")
        joined = self.n_head * self.width
        bias = config.bias != "none"
        self.out = nn.Linear(joined, config.n_embd, bias) if config.output_projection else nn.Identity()
        self.query_norm = nn.RMSNorm(self.width, eps=1e-6) if config.qk_norm else nn.Identity()
        self.key_norm = nn.RMSNorm(self.width, eps=1e-6) if config.qk_norm else nn.Identity()
        # Without an output projection the lecture applies no dropout after the heads.
        self.dropout = nn.Dropout(config.dropout if config.output_projection else 0.0)

    def init_cache(self, batch: int, length: int, like: Tensor) -> LayerCache:
        """Zero keys and values for `length` tokens, and one extra place that padding may overwrite."""
        shape = (batch, self.n_kv_head, length + 1, self.width)
        return {"keys": like.new_zeros(shape), "values": like.new_zeros(shape)}

    def forward(self, x: Float[Tensor, "b t c"], context: Context, cache: LayerCache | None) -> Float[Tensor, "b t c"]:
        """Return the attention output for every position; append the new keys and values to the cache."""
        b, t, _ = x.shape
        widths = [self.n_head * self.width, self.n_kv_head * self.width, self.n_kv_head * self.width]
        query, key, value = (
            part.view(b, t, -1, self.width).transpose(1, 2) for part in self.qkv(x).split(widths, dim=-1)
        )
        query, key = self.query_norm(query), self.key_norm(key)
        if context.rotation is not None:
            query, key = rotate(query, context.rotation), rotate(key, context.rotation)
        if cache is not None and context.cache is not None:
            key, value = append(cache, key, value, context)
        traced = None if context.trace is None else context.trace.attention
        joined = self.attend(query, key, value, context.mask, context.causal, traced)
        return self.dropout(self.out(joined))  # type: ignore[no-any-return]


class CrossAttention(Heads):
    """Attention from the decoder to the encoder's output (Vaswani et al. 2017, section 3.2.3)."""

    def __init__(self, config: ModelConfig) -> None:
        """Build one matrix for queries, one for keys and values (in this order), and the output projection."""
        super().__init__(config)
        self.query = nn.Linear(config.n_embd, self.n_head * self.width, bias=config.bias == "all")
        self.kv = nn.Linear(config.n_embd, 2 * self.n_kv_head * self.width, bias=config.bias == "all")
        self.out = nn.Linear(self.n_head * self.width, config.n_embd, bias=config.bias != "none")
        self.query_norm = nn.RMSNorm(self.width, eps=1e-6) if config.qk_norm else nn.Identity()
        self.key_norm = nn.RMSNorm(self.width, eps=1e-6) if config.qk_norm else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)

    def read(self, memory: EncoderOutput) -> LayerCache:
        """Compute the keys and values of an encoder's output. They are the same for every decoding step."""
        key, value = (
            part.unflatten(-1, (-1, self.width)).transpose(1, 2) for part in self.kv(memory.vectors).chunk(2, dim=-1)
        )
        return {"cross_keys": self.key_norm(key), "cross_values": value, "cross_seen": memory.seen}

    def forward(self, x: Float[Tensor, "b t c"], context: Context, cache: LayerCache | None) -> Float[Tensor, "b t c"]:
        """Return the attention output for every position of the target."""
        source = cache if cache is not None and "cross_keys" in cache else self.read(_given(context.memory))
        query = self.query_norm(self.query(x).unflatten(-1, (self.n_head, self.width)).transpose(1, 2))
        traced = None if context.trace is None else context.trace.cross
        joined = self.attend(query, source["cross_keys"], source["cross_values"], source["cross_seen"], False, traced)
        return self.dropout(self.out(joined))  # type: ignore[no-any-return]


def attention_weights(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b g s d"],
    seen: Bool[Tensor, "b 1 _ s"] | None,
    causal: bool,
    scale: float,
) -> Float[Tensor, "b h t s"]:
    """softmax(scale * q k^T) over the keys that each query may see; each row sums to 1."""
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    scores = scale * (query @ key.transpose(-2, -1))
    if seen is None and causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()[None, None]
    return (scores if seen is None else scores.masked_fill(~seen, float("-inf"))).softmax(dim=-1)


def _given(memory: EncoderOutput | None) -> EncoderOutput:
    if memory is None:
        raise ValueError("cross-attention needs an encoder's output, in the context or in the cache")
    return memory


def append(
    cache: LayerCache, key: Float[Tensor, "b g t d"], value: Float[Tensor, "b g t d"], context: Context
) -> tuple[Tensor, Tensor]:
    """Write new keys and values after each row's old ones; return all that are in use, (b, g, s, d) each."""
    assert context.cache is not None
    t, keys, values = key.shape[2], cache["keys"], cache["values"]
    end = min(max(context.cache.lengths) + t, context.cache.capacity)
    if context.ragged:
        rows = torch.arange(len(key), device=key.device)[:, None]
        places = context.positions.clamp(max=context.cache.capacity)  # padding goes to the extra place
        keys[rows, :, places] = key.transpose(1, 2).to(keys.dtype)
        values[rows, :, places] = value.transpose(1, 2).to(values.dtype)
    else:
        keys[:, :, end - t : end] = key
        values[:, :, end - t : end] = value
    return keys[:, :, :end].to(key.dtype), values[:, :, :end].to(value.dtype)
