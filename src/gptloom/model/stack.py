"""A stack of blocks over token and position embeddings: the body of decoders and encoders alike."""

from typing import Any, cast

from jaxtyping import Float, Int
from torch import Tensor, nn

from gptloom.config import ModelConfig
from gptloom.model.attention import Attention, CrossAttention
from gptloom.model.block_passes import Weights
from gptloom.model.layers import MLP, CausalMean, make_norm, rotary_table, rotation_at, sinusoids
from gptloom.model.ngrams import HashedNgrams
from gptloom.model.state import Context, Slot, State
from gptloom.model.whole_block import make_plan, pays, whole_block


class Block(nn.Module):
    """Exchange between positions, then work at each position; each a branch that is added to the stream.

    pre:  x = x + mix(norm(x));  x = x + mlp(norm(x))        (GPT-2)
    post: x = norm(x + mix(x));  x = norm(x + mlp(x))        (Vaswani et al. 2017)

    With `cross`, what an encoder has read is looked at in between.
    """

    def __init__(self, config: ModelConfig, *, cross: bool = False) -> None:
        """Build the branches; one that the configuration leaves out is absent."""
        super().__init__()
        self.post, self.adds = config.norm_position == "post", config.residual == "add"
        self.mixer: Attention | CausalMean | None = None
        if config.mixer != "none":
            self.mixer = Attention(config) if config.mixer == "attention" else CausalMean(config)
        self.mlp = MLP(config) if config.mlp != "none" else None
        self.norm1 = make_norm(config) if self.mixer else None
        self.norm2 = make_norm(config) if self.mlp else None
        self.cross = CrossAttention(config) if cross else None
        self.norm_cross = make_norm(config) if cross else None
        self.plan = None if cross else make_plan(config)

    def forward(self, x: Float[Tensor, "b t c"], context: Context, slot: Slot | None = None) -> Float[Tensor, "b t c"]:
        """One step along the residual stream."""
        if self.plan is not None and slot is None and pays(x, context) and self.is_as_built():
            return whole_block(x, self.plan, context, self.weights(context))
        if self.mixer is not None and self.norm1 is not None:
            x = self._join(x, self.mixer(x if self.post else self.norm1(x), context, slot), self.norm1)
        if self.cross is not None and self.norm_cross is not None:
            x = self._join(x, self.cross(x if self.post else self.norm_cross(x), context, slot), self.norm_cross)
        if self.mlp is not None and self.norm2 is not None:
            x = self._join(x, self.mlp(x if self.post else self.norm2(x)), self.norm2)
        return x

    def init_slot(self, batch: int, length: int, like: Tensor) -> Slot:
        """Empty memory of this block's mixer, in the type and on the device of `like`."""
        return self.mixer.init_slot(batch, length, like) if self.mixer else {}

    def is_as_built(self) -> bool:
        """No other layer stands in a layer's place (an adapter, a parametrization), and nobody listens to one: `whole_block` would pass over both."""
        mixer, mlp, *norms = cast(Any, (self.mixer, self.mlp, self.norm1, self.norm2))
        layers = mixer.qkv, mixer.out, mlp.up, mlp.down
        heard = any(one._forward_hooks or one._forward_pre_hooks or one._backward_hooks or one._backward_pre_hooks for one in (mixer, mlp, *norms, *layers))
        return not heard and all(type(one) is nn.Linear for one in layers)

    def weights(self, context: Context) -> Weights:
        """All that `whole_block` needs, where there is a plan for it."""
        mixer, mlp, norm1, norm2 = cast(Any, (self.mixer, self.mlp, self.norm1, self.norm2))
        cos, sin = context.rotation or (None, None)
        return Weights(
            norm1=norm1.weight, norm1_bias=getattr(norm1, "bias", None),
            qkv=mixer.qkv.weight, qkv_bias=mixer.qkv.bias,
            query_norm=getattr(mixer.query_norm, "weight", None), key_norm=getattr(mixer.key_norm, "weight", None),
            out=mixer.out.weight, out_bias=mixer.out.bias,
            norm2=norm2.weight, norm2_bias=getattr(norm2, "bias", None),
            up=mlp.up.weight, up_bias=mlp.up.bias, down=mlp.down.weight, down_bias=mlp.down.bias,
            cos=cos, sin=sin,
        )  # fmt: skip

    def _join(self, x: Tensor, branch: Tensor, norm: nn.Module) -> Tensor:
        x = x + branch if self.adds else branch
        return norm(x) if self.post else x


class Stack(nn.Module):
    """Embeddings, blocks and the last norm.

    Args:
        config: the shape.
        causal: whether a position sees only what came before it. That is all that makes a decoder of an encoder.
        cross: whether the blocks also look at an encoder's memory.
    """

    def __init__(self, config: ModelConfig, *, causal: bool = True, cross: bool = False) -> None:
        """Build the layers; the weights are PyTorch's until `initialise`."""
        super().__init__()
        self.config, self.causal = config, causal
        self.token_table = nn.Embedding(config.table_rows, config.stream_width)
        self.position_table = nn.Embedding(config.block_size, config.n_embd) if config.positions == "learned" else None
        self.ngrams = HashedNgrams(config.ngrams, config.ngram_rows, config.stream_width, config.ngram_dropout) if config.ngrams > 1 else None
        self.dropout = nn.Dropout(config.dropout if config.embd_dropout is None else config.embd_dropout)
        self.blocks = nn.ModuleList(Block(config, cross=cross) for _ in range(config.n_layer))
        has_final_norm = config.head != "none" and config.norm_position == "pre"
        self.final_norm = make_norm(config) if has_final_norm else nn.Identity()
        # The tables follow from the configuration, so they are not part of the saved weights.
        if config.positions == "rotary":
            self.register_buffer("rotary", rotary_table(config.block_size, config.width_per_head, config.rope_theta), persistent=False)
        if config.positions == "sinusoidal":
            self.register_buffer("sinusoids", sinusoids(config.block_size, config.n_embd), persistent=False)

    def run(self, ids: Int[Tensor, "b t"], context: Context) -> Float[Tensor, "b t c"]:
        """The normalised residual stream after the last block; ids below 0 are padding, which only an encoder takes."""
        x = self.enter(ids, context)
        if context.trace is not None:
            context.trace.stream.append(x.detach())
        for index, block in enumerate(self.blocks):
            x = block(x, context, context.state.slots[index] if context.state else None)
            if context.trace is not None:
                context.trace.stream.append(x.detach())
        if context.state is not None:
            context.state.advance(context.counts or [ids.shape[1]] * len(ids))
        out: Tensor = self.final_norm(x)
        return out

    def enter(self, ids: Int[Tensor, "b t"], context: Context) -> Float[Tensor, "b t c"]:
        """The residual stream before the first block."""
        self._check_room(ids.shape[1], context)
        if self.causal:
            context.place(ids.shape[1], ids.device)
        else:
            context.open(ids >= 0)
            ids = ids.clamp(min=0)
        x = self.look_up(ids, context)
        if self.ngrams is not None:
            x = x + self.ngrams(ids, context, context.state.slots[-1] if context.state else None)
        return self.dropout(x)  # type: ignore[no-any-return]

    def init_state(self, batch: int, length: int) -> State:
        """Empty memory for `batch` rows of up to `length` tokens (at most block_size), on the model's device and in its type."""
        if length > self.config.block_size:
            raise ValueError(f"a state for {length} tokens is longer than block_size={self.config.block_size}")
        like = self.token_table.weight.new_empty(0, self.config.n_embd)
        slots = [block.init_slot(batch, length, like) for block in cast(list[Block], self.blocks)]
        return State(slots + ([self.ngrams.init_slot(batch)] if self.ngrams is not None else []), batch, length)

    def look_up(self, ids: Int[Tensor, "b t"], context: Context) -> Float[Tensor, "b t c"]:
        """Token and position embeddings, once the context has its positions."""
        x: Tensor = self.token_table(ids)
        # Padding behind a full row has no position; clamping keeps its (unused) result well defined.
        positions = context.positions.clamp(max=self.config.block_size - 1) if context.ragged else context.positions
        if self.position_table is not None:
            x = x + self.position_table(positions)
        elif self.config.positions == "sinusoidal":
            x = x + self.get_buffer("sinusoids")[positions]
        elif self.config.positions == "rotary":
            context.rotation = rotation_at(self.get_buffer("rotary"), positions)
        return x

    def _check_room(self, tokens: int, context: Context) -> None:
        if context.state is None:
            if tokens > self.config.block_size:
                raise ValueError(f"{tokens} tokens do not fit block_size={self.config.block_size}")
            return
        added = context.counts or [tokens] * len(context.state.lengths)
        longest = max(map(sum, zip(context.state.lengths, added, strict=True)))
        if longest > context.state.capacity:
            raise ValueError(f"{longest} tokens do not fit a state of {context.state.capacity}")
