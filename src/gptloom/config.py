"""Every knob, typed, once. The flag, its help, the TOML key and the saved JSON all come from the fields below."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

IGNORED = -1
"""A target with this value is not predicted and does not count: the one number that data and model agree on."""

Probability = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
OnUnknown = Literal["error", "skip", "replace"]
Sampling = Literal["random", "shuffled", "documents"]


class Config(BaseModel):
    """A frozen group of settings; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class ModelConfig(Config):
    """The model's shape: one flat set of choices from the bigram table to a modern GPT, and its neighbours."""

    architecture: Literal["decoder", "encoder", "encoder-decoder", "rnn", "lstm", "gru"] = Field(
        "decoder",
        description="decoder writes on; encoder fills in masked tokens; encoder-decoder translates pairs; the recurrent ones are "
        "shaped by n_layer, n_embd, dropout and head alone",
    )
    vocab_size: int = Field(65, ge=1, description="Number of token ids; training sets it from the tokenizer")
    block_size: Count = Field(64, description="Longest context, in tokens")
    n_layer: int = Field(4, ge=0, description="Number of blocks")
    n_head: Count = Field(4, description="Query heads")
    n_kv_head: Count | None = Field(None, description="Key and value heads, each shared by n_head / n_kv_head queries (default: n_head)")
    n_embd: Count = Field(128, description="Width of the residual stream")
    head_size: Count | None = Field(None, description="Width of one head (default: n_embd / n_head)")
    mixer: Literal["attention", "mean", "none"] = Field(
        "attention", description="How positions exchange information: attention, the causal mean, or not at all"
    )
    output_projection: bool = Field(True, description="A linear layer after the heads are joined")
    score_scale: Literal["head", "embedding"] = Field("head", description="Attention scores are divided by the root of this width")
    qk_norm: bool = Field(False, description="Normalise queries and keys per head before their product (RMSNorm)")
    positions: Literal["learned", "sinusoidal", "rotary", "none"] = Field("learned", description="How a token's position is told")
    rope_theta: Positive = Field(10_000.0, description="Base of the rotary wavelengths")
    mlp: Literal["none", "relu", "gelu", "gelu-tanh", "swiglu", "relu2"] = Field(
        "gelu-tanh", description="The feed-forward layer's activation, or no such layer"
    )
    mlp_width: Count | None = Field(None, description="Width inside the MLP (default: 4 n_embd; for swiglu 8/3 n_embd, rounded up to a multiple of 8)")
    residual: Literal["add", "none"] = Field("add", description="Whether a branch is added to its input or replaces it")
    norm: Literal["none", "layernorm", "rmsnorm"] = Field("layernorm", description="Normalisation")
    norm_position: Literal["pre", "post"] = Field("pre", description="Normalise a branch's input (and once at the end), or each sum after it")
    bias: Literal["all", "not-qkv", "none"] = Field("all", description="Which linear layers and LayerNorms inside the blocks have a bias")
    head: Literal["linear", "tied", "none"] = Field(
        "linear", description="Output layer: its own matrix, the token table again, or none (the table holds the logits: a bigram)"
    )
    head_bias: bool = Field(False, description="A bias on the output layer")
    tables: Literal["separate", "shared"] = Field("separate", description="Whether an encoder-decoder's two sides have a token table each")
    dropout: Probability = Field(0.0, description="Dropout on the residual branches, and on the two below unless they are given")
    attn_dropout: Probability | None = Field(None, description="Dropout on the attention weights (default: dropout)")
    embd_dropout: Probability | None = Field(None, description="Dropout on the summed embeddings (default: dropout)")
    init: Literal["pytorch", "gpt2", "zero-projection"] = Field(
        "gpt2", description="Initial weights: PyTorch's defaults, GPT-2's, or GPT-2's with every branch starting at zero"
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

    @model_validator(mode="after")
    def _check(self) -> "ModelConfig":
        if self.architecture != "decoder" and (self.head == "none" or not self.n_layer):
            raise ValueError(f"architecture={self.architecture!r} needs layers and a head (--model.n-layer, --model.head)")
        if self.is_recurrent:
            return self
        if self.architecture != "decoder" and self.mixer != "attention":
            raise ValueError(f"architecture={self.architecture!r} needs attention, not mixer={self.mixer!r} (--model.mixer)")
        uses_heads = self.mixer != "none" and self.n_layer > 0
        if uses_heads and not self.head_size and self.n_embd % self.n_head:
            divisors = [d for d in range(1, self.n_embd + 1) if self.n_embd % d == 0]
            near = [*[d for d in divisors if d < self.n_head][-1:], *[d for d in divisors if d > self.n_head][:1]]
            raise ValueError(f"n_head={self.n_head} does not divide n_embd={self.n_embd}; nearby: {', '.join(map(str, near))} (--model.n-head)")
        if uses_heads and self.n_head % self.kv_heads:
            raise ValueError(f"n_kv_head={self.kv_heads} does not divide n_head={self.n_head} (--model.n-kv-head)")
        if uses_heads and self.positions == "rotary" and self.width_per_head % 2:
            raise ValueError(
                f"rotary positions need an even head width, and n_embd={self.n_embd} / n_head={self.n_head} gives {self.width_per_head} (--model.n-head)"
            )
        if uses_heads and not self.output_projection and self.n_head * self.width_per_head != self.n_embd:
            raise ValueError(
                f"without an output projection the heads must fill n_embd: {self.n_head} x {self.width_per_head} is not {self.n_embd} (--model.head-size)"
            )
        if self.positions == "sinusoidal" and self.n_embd % 2:
            raise ValueError(f"sinusoidal positions need an even width, not n_embd={self.n_embd} (--model.n-embd)")
        if self.head == "none" and (self.n_layer or self.positions in ("learned", "sinusoidal")):
            raise ValueError("head='none' is the bigram's table, which has no blocks and no positions; set n_layer=0 and positions='none' (--model.head)")
        return self


class DataConfig(Config):
    """What is read, how it becomes ids, and how they are cut into windows."""

    tokenizer: str = Field("char", description="char, byte, bpe:SIZE, sentencepiece:SIZE, tiktoken:NAME, or the path of a tokenizer.json or .model file")
    text_field: str = Field("text", description="The field (JSON Lines) or column (CSV) that holds the text")
    encoding: str | None = Field(None, description="Text encoding (default: UTF-8, else detected)")
    on_unknown: OnUnknown = Field("error", description="What to do with characters that the tokenizer does not have")
    val_fraction: float = Field(0.1, gt=0.0, lt=1.0, description="Share of the text, at its end, that is kept for validation")
    val_tokens: int = Field(500_000, ge=2, description="Longest validation share, in tokens: it is read whole at every evaluation")
    val_text: str | None = Field(None, description="A file to validate on, instead of a share of the text")
    split: Literal["position", "document"] = Field("position", description="Cut off the validation share at a token, or at the nearest document")
    sampling: Sampling = Field("random", description="Training windows: random starts; each window once an epoch; or each within one document")
    mask_fraction: float = Field(0.15, gt=0.0, lt=1.0, description="Share of the tokens that an encoder has to fill in")
    cache: str | None = Field(None, description="Folder for token files and data sets (default: the user's cache folder)")


class TrainConfig(Config):
    """How long, how fast, and what is reported on the way."""

    steps: Count | None = Field(None, description="Stop after this many optimizer steps")
    minutes: Positive | None = Field(None, description="Stop after this much training time; the schedule follows the clock to its end")
    epochs: Positive | None = Field(None, description="Stop after this many passes over the training tokens")
    batch_size: Count = Field(16, description="Sequences per optimizer step")
    micro_batch_size: Count | None = Field(None, description="Sequences per forward pass; must divide batch_size (default: batch_size)")
    learning_rate: Positive = Field(1e-3, description="Peak learning rate")
    schedule: Literal["constant", "linear", "cosine", "wsd", "inverse-root"] = Field(
        "cosine", description="Learning rate after the warm-up; wsd stays at the peak, then falls; inverse-root is the first Transformer's"
    )
    warmup_steps: int = Field(50, ge=0, description="Steps over which the learning rate rises")
    final_lr_fraction: float = Field(0.1, ge=0.0, le=1.0, description="Learning rate at the end, as a share of the peak")
    decay_fraction: float = Field(0.2, gt=0.0, le=1.0, description="Share of the steps after the warm-up over which wsd falls")
    weight_decay: float = Field(0.1, ge=0.0, description="AdamW's decoupled decay of the weights that `decay` names")
    decay: Literal["matrices", "all"] = Field("matrices", description="Which parameters decay: the matrices of linear layers, or every one")
    beta1: Probability = Field(0.9, description="AdamW's decay of the mean gradient")
    beta2: Probability = Field(0.99, description="AdamW's decay of the mean squared gradient")
    label_smoothing: float = Field(0.0, ge=0.0, lt=1.0, description="Share of each target's probability that is spread over all tokens, in training")
    grad_clip: float = Field(1.0, ge=0.0, description="Largest gradient norm; 0 switches clipping off")
    patience: Count | None = Field(None, description="Stop after this many evaluations in a row without a new best")
    eval_every: Count | None = Field(None, description="Steps between evaluations (default: a tenth of the run; fewer where they would take long)")
    eval_batch_size: Count = Field(64, description="Sequences per forward pass in evaluation")
    on_divergence: Literal["stop", "rollback", "skip"] = Field(
        "stop",
        description="When a loss or a gradient is not finite: end the run; go back to the last checkpoint and on at half the rate (3 times at most); "
        "or pass over the batch (10 in a row at most)",
    )
    save_every: Count | None = Field(None, description="Steps between checkpoints (default: at each evaluation)")
    keep: Count = Field(2, description="Checkpoints kept, besides the best")
    on_save_failure: Literal["stop", "continue"] = Field(
        "stop", description="When a checkpoint cannot be written: end the run with the last good one, or go on and try again at the next"
    )
    log_every: Count | None = Field(None, description="Steps between lines of metrics.jsonl (default: a hundredth of the run)")
    sample_tokens: int = Field(400, ge=0, description="Tokens sampled after each evaluation; 0 switches it off")
    sample_prompt: str = Field("\n", description="What those samples continue")
    precision: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto is bfloat16 autocast where the hardware has matrix units for it")
    compile: Literal["auto", "on", "off"] = Field("auto", description="torch.compile; auto is on for CUDA runs of 1,000 steps or 5 minutes and more")
    threads: Count | None = Field(None, description="CPU threads of each process (default: one for small work, else PyTorch's choice)")
    ranks: Count = Field(1, description="Processes that share each batch: one a GPU, or several on a CPU")
    tensorboard: bool = Field(False, description="Also write TensorBoard events into the run folder (extra: track)")

    @model_validator(mode="after")
    def _check(self) -> "TrainConfig":
        given = [name for name in ("steps", "minutes", "epochs") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude one another: give one length for the run")
        if self.batch_size % self.ranks:
            raise ValueError(f"ranks={self.ranks} does not divide batch_size={self.batch_size} (--train.ranks)")
        if self.batch_size % self.rows:
            raise ValueError(f"micro_batch_size={self.rows} does not divide batch_size={self.batch_size} (--train.micro-batch-size)")
        return self

    @property
    def rows(self) -> int:
        """Sequences per forward pass, on each rank."""
        return min(self.micro_batch_size or self.batch_size, self.batch_size // self.ranks)


class RunConfig(Config):
    """A whole run: what `config.toml` in a run folder holds."""

    recipe: str = Field("tiny", description="The named set of settings that the others start from")
    seed: int = Field(1337, ge=0, lt=2**63, description="The one source of randomness: weights, batches, dropout, samples")
    device: str = Field("auto", description="auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:N or mps")
    data: DataConfig = Field(default_factory=DataConfig, description="Text, tokens, windows")
    model: ModelConfig = Field(default_factory=lambda: ModelConfig(), description="The model's shape")
    train: TrainConfig = Field(default_factory=lambda: TrainConfig(), description="Training")


class SampleConfig(Config):
    """How the next token is chosen. The order is fixed: repetition penalty, temperature, top-k, top-p, min-p."""

    tokens: Count = Field(300, description="Tokens to write, at most")
    samples: Count = Field(1, description="Number of texts")
    repetition_penalty: Annotated[float, Field(ge=1.0, allow_inf_nan=False)] = Field(1.0, description="Divide the score of tokens that have occurred (1: off)")
    temperature: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = Field(0.8, description="Divide the logits by this; 0 takes the likeliest token")
    top_k: Count | None = Field(None, description="Keep the k likeliest tokens")
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] | None = Field(None, description="Keep the likeliest tokens that together reach this probability")
    min_p: Annotated[float, Field(ge=0.0, le=1.0)] | None = Field(None, description="Keep tokens at least this probable relative to the likeliest")
    seed: int = Field(1337, ge=0, lt=2**63, description="Seed of the draws")
    stop: tuple[str, ...] = Field((), description="End a text before this string (may be given several times)")
    beams: Count = Field(1, description="Beam search with this many beams, instead of drawing")
    length_penalty: float = Field(1.0, ge=0.0, description="Beam scores are divided by length to this power")

    @model_validator(mode="after")
    def _check(self) -> "SampleConfig":
        if 1 < self.beams < self.samples:
            raise ValueError(f"a search with {self.beams} beams cannot return {self.samples} texts (--beams, --samples)")
        return self


class LadderConfig(Config):
    """How far and how often the lecture's steps are trained."""

    steps: Count | None = Field(None, description="Budget of every step, in the lecture's steps of 256 tokens; larger steps take fewer (default: 5000)")
    minutes: Positive | None = Field(None, description="Time for the whole ladder; what is left over buys seeds, up to 5, unless --seeds is given")
    seeds: Count | None = Field(None, description="Trainings of every step, each with a seed of its own (default: 2; with --minutes, more where they fit)")
    only: str | None = Field(None, description="Some steps, separated by commas, and the ones that they are compared with")
    seed: int = Field(1337, ge=0, lt=2**62, description="The first seed; the next ones follow it")
    device: str = Field("auto", description="auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:N or mps")
    tokenizer: str = Field("char", description="char, byte, bpe:SIZE, sentencepiece:SIZE, tiktoken:NAME, or the path of a tokenizer.json or .model file")

    @model_validator(mode="after")
    def _check(self) -> "LadderConfig":
        if self.steps is not None and self.minutes is not None:
            raise ValueError("steps and minutes exclude one another: give one length for the ladder")
        return self
