"""A stack of blocks over token and position embeddings: the body of decoders and encoders alike.

The decoder: one class from the bigram's table to a modern GPT, every difference a field of its configuration.

The first Transformer: an encoder reads a source, a decoder writes a target and looks at what was read (Vaswani et al.
2017).
"""

from collections.abc import Sequence
from copy import copy
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gptloom.config.load import parse, read_recipe
from gptloom.config.model import ModelConfig
from gptloom.model.attention import Attention, CrossAttention
from gptloom.model.base import LanguageModel
from gptloom.model.cache import Context, Memory, Slot, State
from gptloom.model.init import initialise
from gptloom.model.layers import MLP, CausalMean, make_norm, rotary_table, rotation_at, sinusoids
from gptloom.model.ngram import HashedNgrams


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

    def forward(self, x: Float[Tensor, "b t c"], context: Context, slot: Slot | None = None) -> Float[Tensor, "b t c"]:
        """One step along the residual stream."""
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
        self.ngrams = (
            HashedNgrams(config.ngrams, config.ngram_rows, config.stream_width, config.ngram_dropout)
            if config.ngrams > 1
            else None
        )
        self.dropout = nn.Dropout(config.dropout if config.embd_dropout is None else config.embd_dropout)
        self.blocks = nn.ModuleList(Block(config, cross=cross) for _ in range(config.n_layer))
        has_final_norm = config.head != "none" and config.norm_position == "pre"
        self.final_norm = make_norm(config) if has_final_norm else nn.Identity()
        # The tables follow from the configuration, so they are not part of the saved weights.
        if config.positions == "rotary":
            self.register_buffer(
                "rotary", rotary_table(config.block_size, config.width_per_head, config.rope_theta), persistent=False
            )
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
        """Empty memory for `batch` rows of up to `length` (at most block_size) tokens, on the model's device."""
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


class Decoder(Stack, LanguageModel):
    """A causal language model: ids in, logits of the next id out.

    With architecture="encoder" it is the same without the causal mask: every position sees all others, so what it can
    learn is to fill in what has been masked (Devlin et al. 2019), and it cannot write on.

    Args:
        config: the shape. Weights are drawn from torch's global generator, as in any `nn.Module`.
    """

    def __init__(self, config: ModelConfig, *, cross: bool = False) -> None:
        """Build the layers and draw their weights; `cross` as in `Stack`.

        Raises:
            ValueError: the configuration is another class's.
        """
        if config.architecture not in (("encoder-decoder",) if cross else ("decoder", "encoder")):
            raise ValueError(
                f"architecture={config.architecture!r} is not built by this class; use model.build.build_model"
            )
        super().__init__(config, causal=config.architecture != "encoder", cross=cross)
        self.head = (
            nn.Linear(config.n_embd, config.vocab_size, bias=config.head_bias) if config.head != "none" else None
        )
        if self.head is not None and config.head == "tied":
            self.head.weight = self.token_table.weight
        self._build_more()
        initialise(self, config)

    @classmethod
    def from_recipe(cls, name: str, **changes: object) -> "Decoder":
        """A freshly initialised model with a recipe's shape.

        Args:
            name: tiny, baby, mingpt, gpt2, modern, modern-tiny or encoder; those of other models (translate, lstm) are
                built by `model.build.build_model`.
            changes: fields of `ModelConfig` to set differently, such as vocab_size=65.

        Raises:
            ConfigError: no such recipe or field, or the fields do not fit together.
            ValueError: the recipe is of another kind of model.
        """
        return cls(parse(ModelConfig, {**read_recipe(name).get("model", {}), **changes}, where=f"recipe {name}"))

    def hidden(self, ids: Int[Tensor, "b t"], context: Context | None = None) -> Float[Tensor, "b t c"]:
        """The normalised residual stream after the last block; see `LanguageModel.hidden`."""
        return self.run(ids, context or Context())

    def _build_more(self) -> None:
        """Parts that a kind of decoder has besides; built before the weights are drawn."""

    def unembed(self, hidden: Float[Tensor, "*n c"]) -> Float[Tensor, "*n v"]:
        """Logits; where the table holds them already, they are passed on."""
        return hidden if self.head is None else self.head(hidden)


def cut_rows(hidden: Float[Tensor, "b t c"], counts: Sequence[int]) -> Float[Tensor, "b c"]:
    """The vector of each row's last real token."""
    return torch.stack([row[count - 1] for row, count in zip(hidden, counts, strict=True)])


class EncoderDecoder(Decoder):
    """A decoder whose blocks also attend to an encoder's memory. `hidden` needs that memory in its context or state.

    Args:
        config: the shape of both sides; each has n_layer blocks.
    """

    def __init__(self, config: ModelConfig) -> None:
        """Build both sides and draw their weights."""
        super().__init__(config, cross=True)

    def _build_more(self) -> None:
        self.encoder = Stack(self.config, causal=False)
        if self.config.tables == "shared":
            self.encoder.token_table.weight = self.token_table.weight

    def encode(self, sources: Int[Tensor, "b s"], context: Context | None = None) -> Memory:
        """Read sources; ids below 0 are padding. A trace in the context gets the encoder's own weights."""
        return Memory(self.encoder.run(sources, context or Context()), (sources >= 0)[:, None, None])

    def translate(self, sources: Int[Tensor, "b s"], inputs: Int[Tensor, "b t"]) -> Float[Tensor, "b t v"]:
        """Logits of the token after each input, given the sources."""
        return self.unembed(self.hidden(inputs, Context(memory=self.encode(sources))))


class Conditioned(LanguageModel):
    """A decoder that has read its sources, one for each row: a language model like any other."""

    def __init__(self, model: EncoderDecoder, memory: Memory) -> None:
        """Keep the model and what it has read."""
        super().__init__()
        self.model, self.memory, self.config = model, memory, model.config
        self.token_table = model.token_table
        self.train(model.training)

    def hidden(self, ids: Int[Tensor, "b t"], context: Context | None = None) -> Float[Tensor, "b t c"]:
        """As the decoder's; without a state, all rows are read from their beginning, beside their sources."""
        context = context or Context()
        if context.state is None:
            context.memory = self.memory
        return self.model.hidden(ids, context)

    def unembed(self, hidden: Float[Tensor, "*n c"]) -> Float[Tensor, "*n v"]:
        """As the decoder's."""
        return self.model.unembed(hidden)

    def for_rows(self, rows: Sequence[int]) -> "Conditioned":
        """The same decoder beside the sources of these rows, in this order; a row may be absent or repeated."""
        index = torch.tensor(rows, device=self.device)
        found = copy(self)
        found.memory = Memory(self.memory.vectors[index], self.memory.seen[index])
        return found

    @torch.no_grad()
    def init_state(self, batch: int, length: int) -> State:
        """The decoder's state, which holds the sources' keys and values already.

        Raises:
            ValueError: `batch` is not the number of sources.
        """
        if batch != len(self.memory.vectors):
            raise ValueError(f"{batch} rows need as many sources, not {len(self.memory.vectors)}")
        state = self.model.init_state(batch, length)
        for block, slot in zip(self.model.blocks, state.slots, strict=False):  # n-grams have one more
            assert isinstance(block, Block) and block.cross is not None
            slot.update(block.cross.read(self.memory))
        return state


def pad_sources(rows: list[list[int]], device: torch.device) -> Int[Tensor, "b s"]:
    """Sources of different lengths as one tensor, padded with -1 on the right."""
    return nn.utils.rnn.pad_sequence(
        [torch.tensor(row, device=device) for row in rows], batch_first=True, padding_value=-1
    )
