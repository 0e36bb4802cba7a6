"""Settings of the model, and the rules that connect them."""

from collections.abc import Iterator
from math import isqrt
from typing import Literal

from pydantic import Field

from gptloom.config.base import Config, Conflict, Heads, Length, Positive, Probability, Width


class ModelConfig(Config):
    """Shape of the model: one flat group, from the bigram table to a modern GPT, encoders and RNNs."""

    architecture: Literal["decoder", "encoder", "encoder-decoder", "rnn", "lstm", "gru"] = Field(
        "decoder",
        description="decoder: autoregressive; encoder: masked language model; encoder-decoder: translates pairs; "
        "rnn, lstm, gru: recurrent (they use only n_layer, n_embd, head, head_bias, dropout, embd_dropout and init)",
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
        "attention", description="How positions exchange information: attention, causal mean, or none"
    )
    output_projection: bool = Field(True, description="Apply a linear layer to the concatenated heads")
    score_scale: Literal["head", "embedding"] = Field(
        "head", description="Divide attention scores by the square root of this width"
    )
    qk_norm: bool = Field(False, description="Normalise queries and keys per head before their product (RMSNorm)")
    positions: Literal["learned", "sinusoidal", "rotary", "none"] = Field("learned", description="Position encoding")
    ngrams: int = Field(
        1, ge=1, le=8, description="Longest n-grams whose hashed embeddings are added to the token embeddings (1: none)"
    )
    ngram_rows: Length = Field(32_768, description="Rows of the n-gram table")
    ngram_dropout: Probability = Field(
        0.0,
        description="Dropout of the n-gram embedding, to limit overfitting",
    )
    rope_theta: Positive = Field(10_000.0, description="Base of the rotary frequencies (theta)")
    mlp: Literal["none", "relu", "gelu", "gelu-tanh", "swiglu", "relu2"] = Field(
        "gelu-tanh", description="Activation of the MLP; none: no MLP"
    )
    mlp_width: Length | None = Field(
        None,
        description="Width inside the MLP (default: 4 n_embd; for swiglu 8/3 n_embd, rounded up to a multiple of 8)",
    )
    residual: Literal["add", "none"] = Field(
        "add", description="Add a sublayer's output to its input, or replace the input"
    )
    norm: Literal["none", "layernorm", "rmsnorm"] = Field("layernorm", description="Normalisation")
    norm_position: Literal["pre", "post"] = Field(
        "pre", description="pre: normalise the input of each sublayer, and once at the end; post: normalise each sum"
    )
    bias: Literal["all", "not-qkv", "none"] = Field(
        "all", description="Layers with a bias: all linear layers and LayerNorms of the blocks, all but qkv, or none"
    )
    head: Literal["linear", "tied", "none"] = Field(
        "linear",
        description="Output layer: a separate matrix, tied to the token embedding, or none (bigram: "
        "the table holds the logits)",
    )
    head_bias: bool = Field(False, description="Give the output layer a bias")
    tables: Literal["separate", "shared"] = Field(
        "separate", description="Separate token embeddings for encoder and decoder, or shared ones"
    )
    dropout: Probability = Field(0.0, description="Dropout on the residual branches; default of the two settings below")
    attn_dropout: Probability | None = Field(None, description="Dropout on the attention weights (default: dropout)")
    embd_dropout: Probability | None = Field(
        None, description="Dropout on the sum of the embeddings (default: dropout)"
    )
    init: Literal["pytorch", "gpt2", "zero-projection"] = Field(
        "gpt2",
        description="Initial weights: PyTorch's defaults, GPT-2's, or GPT-2's with zero output projections",
    )

    @property
    def kv_heads(self) -> int:
        """Number of key-value heads."""
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
        """Width of the token embeddings: n_embd, or vocab_size if the table holds the logits."""
        return self.vocab_size if self.head == "none" else self.n_embd

    @property
    def is_recurrent(self) -> bool:
        """True for an RNN, LSTM or GRU."""
        return self.architecture in ("rnn", "lstm", "gru")

    @property
    def table_rows(self) -> int:
        """Rows of the token table. An encoder has one more, the mask token."""
        return self.vocab_size + (self.architecture == "encoder")

    def conflicts(self) -> Iterator[Conflict]:
        """Check the rules between sizes; a recurrent model has no attention to check."""
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
            why = (
                "head='none' is the bigram's table, which has no blocks and no positions; "
                "set n_layer=0 and positions='none' (--model.head)"
            )
            yield Conflict(("head", "n_layer", "positions"), why)

    def _conflicts_of_heads(self) -> Iterator[Conflict]:
        joined, width, n_embd = self.n_head * self.width_per_head, self.width_per_head, self.n_embd
        if not self.head_size and n_embd % self.n_head:
            small = [d for d in range(1, isqrt(n_embd) + 1) if n_embd % d == 0]
            divisors = sorted({*small, *(n_embd // d for d in small)})
            near = [*[d for d in divisors if d < self.n_head][-1:], *[d for d in divisors if d > self.n_head][:1]]
            nearby = ", ".join(map(str, near))
            why = f"n_head={self.n_head} does not divide n_embd={n_embd}; nearby: {nearby} (--model.n-head)"
            yield Conflict(("n_head", "n_embd", "head_size"), why)
            return  # the rules below need a width per head
        if self.n_head % self.kv_heads:
            yield Conflict(
                ("n_kv_head", "n_head"),
                f"n_kv_head={self.kv_heads} does not divide n_head={self.n_head} (--model.n-kv-head)",
            )
        if self.positions == "rotary" and width % 2:
            why = (
                f"rotary positions need an even head width, and n_embd={n_embd} / n_head={self.n_head} "
                f"gives {width} (--model.n-head)"
            )
            yield Conflict(("positions", "n_embd", "n_head", "head_size"), why)
        if not self.output_projection and joined != n_embd:
            why = (
                f"without an output projection the heads must fill n_embd: {self.n_head} x {width} "
                f"is not {n_embd} (--model.head-size)"
            )
            yield Conflict(("output_projection", "n_embd", "n_head", "head_size"), why)
