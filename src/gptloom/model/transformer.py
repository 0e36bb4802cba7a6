"""The Transformer: decoder (GPT), encoder, and encoder-decoder (Vaswani et al. 2017).

One `Decoder` class covers every model from the bigram table to a modern GPT. All differences are fields of
`ModelConfig`.
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
from gptloom.model.cache import Cache, Context, EncoderOutput, LayerCache
from gptloom.model.init import initialise
from gptloom.model.layers import MLP, CausalMean, make_norm, rotary_table, rotation_at, sinusoids
from gptloom.model.ngram import HashedNgrams


class Block(nn.Module):
    """Transformer block: attention, then MLP, each with a residual connection and a norm.

    pre:  x = x + attention(norm(x));  x = x + mlp(norm(x))        (GPT-2)
    post: x = norm(x + attention(x));  x = norm(x + mlp(x))        (Vaswani et al. 2017)

    With `cross`, cross-attention to the encoder's output comes between the two.
    """

    def __init__(self, config: ModelConfig, *, cross: bool = False) -> None:
        """Build the sublayers; one that the configuration leaves out is None."""
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

    def forward(
        self, x: Float[Tensor, "b t c"], context: Context, cache: LayerCache | None = None
    ) -> Float[Tensor, "b t c"]:
        """Apply the sublayers."""
        if self.mixer is not None and self.norm1 is not None:
            x = self._join(x, self.mixer(x if self.post else self.norm1(x), context, cache), self.norm1)
        if self.cross is not None and self.norm_cross is not None:
            x = self._join(x, self.cross(x if self.post else self.norm_cross(x), context, cache), self.norm_cross)
        if self.mlp is not None and self.norm2 is not None:
            x = self._join(x, self.mlp(x if self.post else self.norm2(x)), self.norm2)
        return x

    def init_cache(self, batch: int, length: int, like: Tensor) -> LayerCache:
        """Return the mixer's empty cache, with the dtype and device of `like`."""
        return self.mixer.init_cache(batch, length, like) if self.mixer else {}

    def _join(self, x: Tensor, branch: Tensor, norm: nn.Module) -> Tensor:
        x = x + branch if self.adds else branch
        return norm(x) if self.post else x


class Stack(nn.Module):
    """Embeddings, blocks and the final norm: the body of a decoder or an encoder.

    Args:
        config: the model's configuration.
        causal: apply the causal mask (decoder) or not (encoder).
        cross: add cross-attention to every block.
    """

    def __init__(self, config: ModelConfig, *, causal: bool = True, cross: bool = False) -> None:
        """Build the layers; `initialise` draws the weights later."""
        super().__init__()
        self.config, self.causal = config, causal
        self.token_table = nn.Embedding(config.table_rows, config.stream_width)
        self.position_table = nn.Embedding(config.block_size, config.n_embd) if config.positions == "learned" else None
        self.ngrams: HashedNgrams | None = None
        if config.ngrams > 1:
            self.ngrams = HashedNgrams(config.ngrams, config.ngram_rows, config.stream_width, config.ngram_dropout)
        self.dropout = nn.Dropout(config.dropout if config.embd_dropout is None else config.embd_dropout)
        self.blocks = nn.ModuleList(Block(config, cross=cross) for _ in range(config.n_layer))
        has_final_norm = config.head != "none" and config.norm_position == "pre"
        self.final_norm = make_norm(config) if has_final_norm else nn.Identity()
        # Fixed tables are computed from the configuration, so they are not saved.
        if config.positions == "rotary":
            table = rotary_table(config.block_size, config.width_per_head, config.rope_theta)
            self.register_buffer("rotary", table, persistent=False)
        if config.positions == "sinusoidal":
            self.register_buffer("sinusoids", sinusoids(config.block_size, config.n_embd), persistent=False)

    def forward_hidden(self, ids: Int[Tensor, "b t"], context: Context | None = None) -> Float[Tensor, "b t c"]:
        """Return the residual stream after the final norm. In an encoder, ids below 0 are padding."""
        context = context or Context()
        x = self.embed(ids, context)
        if context.trace is not None:
            context.trace.stream.append(x.detach())
        for index, block in enumerate(self.blocks):
            x = block(x, context, context.cache.layers[index] if context.cache else None)
            if context.trace is not None:
                context.trace.stream.append(x.detach())
        if context.cache is not None:
            context.cache.advance(context.counts or [ids.shape[1]] * len(ids))
        out: Tensor = self.final_norm(x)
        return out

    def embed(self, ids: Int[Tensor, "b t"], context: Context) -> Float[Tensor, "b t c"]:
        """Return the residual stream before the first block: all embeddings, after dropout."""
        self._check_room(ids.shape[1], context)
        if self.causal:
            context.place(ids.shape[1], ids.device)
        else:
            context.open(ids >= 0)
            ids = ids.clamp(min=0)
        x = self.embed_tokens(ids, context)
        if self.ngrams is not None:
            x = x + self.ngrams(ids, context, context.cache.layers[-1] if context.cache else None)
        return self.dropout(x)  # type: ignore[no-any-return]

    def init_cache(self, batch: int, length: int) -> Cache:
        """Return an empty cache, with the model's device and dtype.

        Raises:
            ValueError: `length` is more than block_size.
        """
        if length > self.config.block_size:
            raise ValueError(f"a cache for {length} tokens is longer than block_size={self.config.block_size}")
        like = self.token_table.weight.new_empty(0, self.config.n_embd)
        layers = [block.init_cache(batch, length, like) for block in cast(list[Block], self.blocks)]
        return Cache(layers + ([self.ngrams.init_cache(batch)] if self.ngrams is not None else []), batch, length)

    def embed_tokens(self, ids: Int[Tensor, "b t"], context: Context) -> Float[Tensor, "b t c"]:
        """Return token plus position embeddings; `context` must already have its positions."""
        x: Tensor = self.token_table(ids)
        # Padding after a full row has no position. Clamping keeps its result, which is not used, defined.
        positions = context.positions.clamp(max=self.config.block_size - 1) if context.ragged else context.positions
        if self.position_table is not None:
            x = x + self.position_table(positions)
        elif self.config.positions == "sinusoidal":
            x = x + self.get_buffer("sinusoids")[positions]
        elif self.config.positions == "rotary":
            context.rotation = rotation_at(self.get_buffer("rotary"), positions)
        return x

    def _check_room(self, tokens: int, context: Context) -> None:
        if context.cache is None:
            if tokens > self.config.block_size:
                raise ValueError(f"{tokens} tokens do not fit block_size={self.config.block_size}")
            return
        added = context.counts or [tokens] * len(context.cache.lengths)
        longest = max(map(sum, zip(context.cache.lengths, added, strict=True)))
        if longest > context.cache.capacity:
            raise ValueError(f"{longest} tokens do not fit a cache of {context.cache.capacity}")


class Decoder(Stack, LanguageModel):
    """A causal language model: ids in, logits of the next id out.

    With architecture="encoder" there is no causal mask. Such a model learns to fill in masked tokens (Devlin et al.
    2019), and cannot generate text.

    Args:
        config: the model's configuration. Weights are drawn from torch's global generator.
        cross: as in `Stack`.

    Raises:
        ValueError: another class builds this architecture.
    """

    def __init__(self, config: ModelConfig, *, cross: bool = False) -> None:
        """Build the layers and draw their weights."""
        if config.architecture not in (("encoder-decoder",) if cross else ("decoder", "encoder")):
            raise ValueError(
                f"architecture={config.architecture!r} is not built by this class; use model.build.build_model"
            )
        super().__init__(config, causal=config.architecture != "encoder", cross=cross)
        self.head: nn.Linear | None = None
        if config.head != "none":
            self.head = nn.Linear(config.n_embd, config.vocab_size, bias=config.head_bias)
            if config.head == "tied":
                self.head.weight = self.token_table.weight
        self._build_more()
        initialise(self, config)

    @classmethod
    def from_recipe(cls, name: str, **changes: object) -> "Decoder":
        """Build a model with a recipe's configuration and new weights.

        Args:
            name: tiny, baby, mingpt, gpt2, modern, modern-tiny or encoder. `model.build.build_model` builds the others
                (translate, lstm).
            changes: fields of `ModelConfig` to override, such as vocab_size=65.

        Raises:
            ConfigError: the recipe or a field does not exist, or the fields conflict.
            ValueError: another class builds the recipe's architecture.
        """
        return cls(parse(ModelConfig, {**read_recipe(name).get("model", {}), **changes}, where=f"recipe {name}"))

    def _build_more(self) -> None:
        """Build the parts that a subclass adds, before the weights are drawn."""

    def unembed(self, hidden: Float[Tensor, "*n c"]) -> Float[Tensor, "*n v"]:
        """Map hidden states to logits. Without a head, the hidden states are the logits."""
        return hidden if self.head is None else self.head(hidden)


def cut_rows(hidden: Float[Tensor, "b t c"], counts: Sequence[int]) -> Float[Tensor, "b c"]:
    """Return the vector of each row's last real token."""
    return torch.stack([row[count - 1] for row, count in zip(hidden, counts, strict=True)])


class EncoderDecoder(Decoder):
    """An encoder, and a decoder that attends to its output.

    `forward_hidden` needs the encoder's output in its context or cache.

    Args:
        config: the configuration of both sides; each has n_layer blocks.
    """

    def __init__(self, config: ModelConfig) -> None:
        """Build both sides and draw their weights."""
        super().__init__(config, cross=True)

    def _build_more(self) -> None:
        self.encoder = Stack(self.config, causal=False)
        if self.config.tables == "shared":
            self.encoder.token_table.weight = self.token_table.weight

    def encode(self, sources: Int[Tensor, "b s"], context: Context | None = None) -> EncoderOutput:
        """Run the encoder. Ids below 0 are padding. A trace in the context records the encoder."""
        return EncoderOutput(self.encoder.forward_hidden(sources, context), (sources >= 0)[:, None, None])

    def forward(  # type: ignore[override]
        self, sources: Int[Tensor, "b s"], inputs: Int[Tensor, "b t"]
    ) -> Float[Tensor, "b t v"]:
        """Return the logits of the token after each input, given the sources."""
        return self.unembed(self.forward_hidden(inputs, Context(memory=self.encode(sources))))


class Conditioned(LanguageModel):
    """A decoder with fixed sources, one per row. It has the interface of any language model."""

    def __init__(self, model: EncoderDecoder, memory: EncoderOutput) -> None:
        """Store the model and the encoder's output."""
        super().__init__()
        self.model, self.memory, self.config = model, memory, model.config
        self.token_table = model.token_table
        self.train(model.training)

    def forward_hidden(self, ids: Int[Tensor, "b t"], context: Context | None = None) -> Float[Tensor, "b t c"]:
        """Run the decoder. Without a cache, each row is a whole target."""
        context = context or Context()
        if context.cache is None:
            context.memory = self.memory
        return self.model.forward_hidden(ids, context)

    def unembed(self, hidden: Float[Tensor, "*n c"]) -> Float[Tensor, "*n v"]:
        """Map hidden states to logits."""
        return self.model.unembed(hidden)

    def for_rows(self, rows: Sequence[int]) -> "Conditioned":
        """Return the decoder with the sources of these rows, in this order; a row may be omitted or repeated."""
        index = torch.tensor(rows, device=self.device)
        found = copy(self)
        found.memory = EncoderOutput(self.memory.vectors[index], self.memory.seen[index])
        return found

    @torch.no_grad()
    def init_cache(self, batch: int, length: int) -> Cache:
        """Return the decoder's cache, which already has the keys and values of the sources.

        Raises:
            ValueError: `batch` is not the number of sources.
        """
        if batch != len(self.memory.vectors):
            raise ValueError(f"{batch} rows need as many sources, not {len(self.memory.vectors)}")
        cache = self.model.init_cache(batch, length)
        for block, layer in zip(self.model.blocks, cache.layers, strict=False):  # n-grams have one entry more
            assert isinstance(block, Block) and block.cross is not None
            layer.update(block.cross.read(self.memory))
        return cache


def pad_sources(rows: list[list[int]], device: torch.device) -> Int[Tensor, "b s"]:
    """Stack sources of different lengths; -1 pads them on the right."""
    return nn.utils.rnn.pad_sequence(
        [torch.tensor(row, device=device) for row in rows], batch_first=True, padding_value=-1
    )
