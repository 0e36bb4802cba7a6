"""One more token for rows of equal length: the decoder's arithmetic as one straight line of operations.

A step of a small model costs what its Python costs, so this is the same as `Decoder.hidden` and `unembed` with everything
resolved beforehand that does not change from token to token. `Decoder` is the reference; the tests hold the two together.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from gptloom.model.attention import Attention
from gptloom.model.base import LanguageModel
from gptloom.model.decoder import Decoder
from gptloom.model.layers import MLP, CausalMean, activate, rotate
from gptloom.model.stack import Block
from gptloom.model.state import Context, Slot, State

Rotation = tuple[Tensor, Tensor] | None
Map = Callable[[Tensor], Tensor]
Mix = Callable[[Tensor, Slot, int, Rotation], Tensor]


def make_stepper(model: LanguageModel) -> Callable[[Tensor, State], Tensor]:
    """The quickest way to a model's next-token scores: (ids, state) to logits (b, v), the state then holding ids too."""
    if type(model) is Decoder and model.ngrams is None:
        return Stepper(model)

    def step(ids: Tensor, state: State) -> Tensor:
        return model.unembed(model.hidden(ids, Context(state=state))[:, -1])

    return step


class Stepper:
    """Reads one token a row and scores the next, in evaluation mode (no dropout).

    Args:
        model: its parameters are taken by reference, so training it further is seen here too.
    """

    def __init__(self, model: Decoder) -> None:
        """Resolve the layers."""
        self.model, self.config = model, model.config
        self.layers = [_layer(block) for block in model.blocks if isinstance(block, Block)]
        self.final_norm, self.head = _norm(model.final_norm), _linear(model.head)

    def __call__(self, ids: Int[Tensor, "b 1"], state: State) -> Float[Tensor, "b v"]:
        """Logits of the tokens after `ids`; the state, whose rows must be equally long, then holds `ids` too."""
        position, config = state.lengths[0], self.config
        x = F.embedding(ids[:, 0], self.model.token_table.weight)
        rotation: Rotation = None
        if self.model.position_table is not None:
            x = x + self.model.position_table.weight[position]
        elif config.positions == "sinusoidal":
            x = x + self.model.get_buffer("sinusoids")[position]
        elif config.positions == "rotary":
            cos, sin = self.model.get_buffer("rotary")[:, position : position + 1].unbind()
            rotation = cos, sin
        for layer, slot in zip(self.layers, state.slots, strict=True):
            x = layer(x, slot, position, rotation)
        state.advance([1] * len(ids))
        return self.head(self.final_norm(x))


def _layer(block: Block) -> Mix:
    """A block's step; x is (b, c)."""
    mix = _attention(block.mixer) if isinstance(block.mixer, Attention) else _mean(block.mixer) if isinstance(block.mixer, CausalMean) else None
    think = _mlp(block.mlp) if block.mlp is not None else None
    norm1, norm2 = _norm(block.norm1), _norm(block.norm2)
    post, adds = block.post, block.adds

    def join(x: Tensor, branch: Tensor, norm: Map) -> Tensor:
        x = x + branch if adds else branch
        return norm(x) if post else x

    def step(x: Tensor, slot: Slot, position: int, rotation: Rotation) -> Tensor:
        if mix is not None:
            x = join(x, mix(x if post else norm1(x), slot, position, rotation), norm1)
        if think is not None:
            x = join(x, think(x if post else norm2(x)), norm2)
        return x

    return step


def _attention(layer: Attention) -> Mix:
    project, out, query_norm, key_norm = _linear(layer.qkv), _linear(layer.out), _norm(layer.query_norm), _norm(layer.key_norm)
    heads, shared, width, scale = layer.n_head, layer.n_kv_head, layer.width, layer.scale
    grouped, attend = heads != shared, F.scaled_dot_product_attention

    def step(x: Tensor, slot: Slot, position: int, rotation: Rotation) -> Tensor:
        parts = project(x).view(-1, heads + 2 * shared, 1, width)
        query, key = query_norm(parts.narrow(1, 0, heads)), key_norm(parts.narrow(1, heads, shared))
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        keys, values = slot["keys"], slot["values"]
        keys.narrow(2, position, 1).copy_(key)
        values.narrow(2, position, 1).copy_(parts.narrow(1, heads + shared, shared))
        seen = position + 1
        joined = attend(query, keys.narrow(2, 0, seen), values.narrow(2, 0, seen), scale=scale, enable_gqa=grouped)
        return out(joined.view(-1, heads * width))

    return step


def _mean(layer: CausalMean) -> Mix:
    out = _linear(layer.out)

    def step(x: Tensor, slot: Slot, position: int, rotation: Rotation) -> Tensor:
        total = slot["total"][:, 0].add_(x)
        return out(total / (position + 1))

    return step


def _mlp(layer: MLP) -> Map:
    up, down, kind = _linear(layer.up), _linear(layer.down), layer.kind
    return lambda x: down(activate(up(x), kind))


def _linear(layer: nn.Module | None) -> Map:
    return partial(F.linear, weight=layer.weight, bias=layer.bias) if isinstance(layer, nn.Linear) else _same


def _norm(layer: nn.Module | None) -> Map:
    if isinstance(layer, nn.LayerNorm):
        shape, weight, bias, eps = layer.normalized_shape, layer.weight, layer.bias, layer.eps
        return lambda x: torch.layer_norm(x, shape, weight, bias, eps)
    if isinstance(layer, nn.RMSNorm):
        return partial(torch.rms_norm, normalized_shape=layer.normalized_shape, weight=layer.weight, eps=layer.eps)
    return _same


def _same(x: Tensor) -> Tensor:
    return x
