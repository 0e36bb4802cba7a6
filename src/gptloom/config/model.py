"""The model's shape: one flat set of choices, and the rules by which they go together."""

from collections.abc import Iterator
from math import isqrt
from typing import Literal

from pydantic import Field

from gptloom.config.base import Config, Conflict, Heads, Length, Positive, Probability, Width


class ModelConfig(Config):
    """The model's shape: one flat set of choices from the bigram table to a modern GPT, and its neighbours."""

    architecture: Literal["decoder", "encoder", "encoder-decoder", "rnn", "lstm", "gru"] = Field(
        "decoder",
        description="decoder writes on; encoder fills in masked tokens; encoder-decoder translates pairs; the recurrent ones are "
        "shaped by n_layer, n_embd, dropout and head alone",
    )
    vocab_size: Length = Field(65, description="Number of token ids; training sets it from the tokenizer")
    block_size: Length = Field(64, description="Longest context, in tokens")
    n_layer: int = Field(4, ge=0, le=1024, description="Number of blocks")
    n_head: Heads = Field(4, description="Query heads")
    n_kv_head: Heads | None = Field(
        None, description="Key and value heads, each shared by n_head / n_kv_head queries (default: n_head)"
    )
    n_embd: Width = Field(128, description="Width of the residual stream")
    head_size: Heads | None = Field(None, description="Width of one head (default: n_embd / n_head)")
    mixer: Literal["attention", "mean", "none"] = Field(
        "attention", description="How positions exchange information: attention, the causal mean, or not at all"
    )
    output_projection: bool = Field(True, description="A linear layer after the heads are joined")
    score_scale: Literal["head", "embedding"] = Field(
        "head", description="Attention scores are divided by the root of this width"
    )
    qk_norm: bool = Field(False, description="Normalise queries and keys per head before their product (RMSNorm)")
    positions: Literal["learned", "sinusoidal", "rotary", "none"] = Field(
        "learned", description="How a token's position is told"
    )
    ngrams: int = Field(
        1, ge=1, le=8, description="Longest n-grams whose hashed embeddings are added to the token's (1: none)"
    )
    ngram_rows: Length = Field(32_768, description="Rows of the table of hashed n-grams")
    ngram_dropout: Probability = Field(
        0.0,
        description="Share of positions that go without n-grams in training, against learning a small text by heart",
    )
    rope_theta: Positive = Field(10_000.0, description="Base of the rotary wavelengths")
    mlp: Literal["none", "relu", "gelu", "gelu-tanh", "swiglu", "relu2"] = Field(
        "gelu-tanh", description="The feed-forward layer's activation, or no such layer"
    )
    mlp_width: Length | None = Field(
        None,
        description="Width inside the MLP (default: 4 n_embd; for swiglu 8/3 n_embd, rounded up to a multiple of 8)",
    )
    residual: Literal["add", "none"] = Field("add", description="Whether a branch is added to its input or replaces it")
    norm: Literal["none", "layernorm", "rmsnorm"] = Field("layernorm", description="Normalisation")
    norm_position: Literal["pre", "post"] = Field(
        "pre", description="Normalise a branch's input (and once at the end), or each sum after it"
    )
    bias: Literal["all", "not-qkv", "none"] = Field(
        "all", description="Which linear layers and LayerNorms inside the blocks have a bias"
    )
    head: Literal["linear", "tied", "none"] = Field(
        "linear",
        description="Output layer: its own matrix, the token table again, or none (the table holds the logits: a bigram)",
    )
    head_bias: bool = Field(False, description="A bias on the output layer")
    tables: Literal["separate", "shared"] = Field(
        "separate", description="Whether an encoder-decoder's two sides have a token table each"
    )
    dropout: Probability = Field(
        0.0, description="Dropout on the residual branches, and on the two below unless they are given"
    )
    attn_dropout: Probability | None = Field(None, description="Dropout on the attention weights (default: dropout)")
    embd_dropout: Probability | None = Field(None, description="Dropout on the summed embeddings (default: dropout)")
    init: Literal["pytorch", "gpt2", "zero-projection"] = Field(
        "gpt2",
        description="Initial weights: PyTorch's defaults, GPT-2's, or GPT-2's with every branch starting at zero",
    )

    @property
    def kv_heads(self) -> int:
        """Number of key and value heads."""
        return self.n_kv_head or self.n_head

    @property
    def width_per_head(self) -> int:
        """Width of one head."""
        return self.head_size or self.n_embd // self.n_head

    @property
    def hidden_width(self) -> int:
        """Width inside the MLP."""
        if self.mlp_width:
            return self.mlp_width
        return -(-8 * self.n_embd // 24) * 8 if self.mlp == "swiglu" else 4 * self.n_embd

    @property
    def stream_width(self) -> int:
        """Width of what the token table holds: the residual stream, or the logits themselves."""
        return self.vocab_size if self.head == "none" else self.n_embd

    @property
    def is_recurrent(self) -> bool:
        """An RNN, LSTM or GRU."""
        return self.architecture in ("rnn", "lstm", "gru")

    @property
    def table_rows(self) -> int:
        """Rows of the token table: an encoder has one more, `MASK`, which stands for a token that it is to fill in."""
        return self.vocab_size + (self.architecture == "encoder")

    def conflicts(self) -> Iterator[Conflict]:
        """The rules of the shapes; a recurrent model has none of attention's."""
        if self.architecture != "decoder" and (self.head == "none" or not self.n_layer):
            yield Conflict(
                ("architecture", "head", "n_layer"),
                f"architecture={self.architecture!r} needs layers and a head (--model.n-layer, --model.head)",
            )
        if self.is_recurrent:
            return
        if self.architecture != "decoder" and self.mixer != "attention":
            yield Conflict(
                ("architecture", "mixer"),
                f"architecture={self.architecture!r} needs attention, not mixer={self.mixer!r} (--model.mixer)",
            )
        if self.mixer != "none" and self.n_layer > 0:
            yield from self._conflicts_of_heads()
        if self.positions == "sinusoidal" and self.n_embd % 2:
            yield Conflict(
                ("positions", "n_embd"),
                f"sinusoidal positions need an even width, not n_embd={self.n_embd} (--model.n-embd)",
            )
        if self.head == "none" and (self.n_layer or self.positions in ("learned", "sinusoidal")):
            why = "head='none' is the bigram's table, which has no blocks and no positions; set n_layer=0 and positions='none' (--model.head)"
            yield Conflict(("head", "n_layer", "positions"), why)

    def _conflicts_of_heads(self) -> Iterator[Conflict]:
        joined, width, n_embd = self.n_head * self.width_per_head, self.width_per_head, self.n_embd
        if not self.head_size and n_embd % self.n_head:
            small = [d for d in range(1, isqrt(n_embd) + 1) if n_embd % d == 0]
            divisors = sorted({*small, *(n_embd // d for d in small)})
            near = [*[d for d in divisors if d < self.n_head][-1:], *[d for d in divisors if d > self.n_head][:1]]
            why = f"n_head={self.n_head} does not divide n_embd={n_embd}; nearby: {', '.join(map(str, near))} (--model.n-head)"
            yield Conflict(("n_head", "n_embd", "head_size"), why)
            return  # what follows is about the width of a head, and there is none
        if self.n_head % self.kv_heads:
            yield Conflict(
                ("n_kv_head", "n_head"),
                f"n_kv_head={self.kv_heads} does not divide n_head={self.n_head} (--model.n-kv-head)",
            )
        if self.positions == "rotary" and width % 2:
            why = f"rotary positions need an even head width, and n_embd={n_embd} / n_head={self.n_head} gives {width} (--model.n-head)"
            yield Conflict(("positions", "n_embd", "n_head", "head_size"), why)
        if not self.output_projection and joined != n_embd:
            why = f"without an output projection the heads must fill n_embd: {self.n_head} x {width} is not {n_embd} (--model.head-size)"
            yield Conflict(("output_projection", "n_embd", "n_head", "head_size"), why)
