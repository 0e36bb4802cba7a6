"""All settings of a run. Flags, help texts, TOML keys and the saved JSON are derived from these fields."""

import re
from collections.abc import Iterator
from typing import Literal

from pydantic import Field, field_validator

from gptloom.config.base import MOST, Amount, Config, Conflict, Count, Positive, Probability, Share, Weight
from gptloom.config.model import ModelConfig
from gptloom.errors import nearest, shortened

IGNORE_INDEX = -1
"""Targets with this value have no loss. Both data and models use it."""

TORCH_OPTIMIZERS = (
    *("ASGD", "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax"),
    *("Muon", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD"),
)
"""The classes of torch.optim for dense parameters without a closure; a list, so that torch is not imported here."""

OPTIMIZERS = ("adamw", "muon", *(f"torch:{name}" for name in TORCH_OPTIMIZERS))
"""The values of --train.optimizer."""

CUSTOM = "custom"
"""The value of `optimizer` in the settings of a run whose optimizer was a Python object."""

OnUnknown = Literal["error", "skip", "replace"]
Weights = Literal["float32", "int8"]
Sampling = Literal["random", "shuffled", "documents"]


class DataConfig(Config):
    """Settings of the text, the tokenizer and the training windows."""

    tokenizer: str = Field(
        "char",
        description="char, byte, bpe:SIZE, sentencepiece:SIZE, tiktoken:NAME, "
        "or the path of a tokenizer.json or .model file",
    )
    text_field: str = Field("text", description="Field (JSON Lines) or column (CSV) of the text")
    encoding: str | None = Field(None, description="Text encoding (default: UTF-8 if it is valid, else detected)")
    on_unknown: OnUnknown = Field("error", description="Treatment of characters that the tokenizer does not know")
    val_fraction: float = Field(
        0.1, gt=0.0, lt=1.0, description="Fraction of the text, at its end, that is used for validation"
    )
    val_tokens: int = Field(
        500_000, ge=2, le=MOST, description="Maximum number of validation tokens; every evaluation reads all of them"
    )
    val_text: str | None = Field(None, description="Validation file, instead of a part of the text")
    split: Literal["position", "document"] = Field(
        "position", description="Split off the validation part at a token, or at the nearest document"
    )
    sampling: Sampling = Field(
        "random",
        description="Training windows: random starts, each window once per epoch, or windows within one document",
    )
    mask_fraction: float = Field(
        0.15, gt=0.0, lt=1.0, description="Fraction of the tokens that are masked for an encoder"
    )
    cache: str | None = Field(
        None, description="Folder for token files and data sets (default: the user's cache folder)"
    )

    def conflicts(self) -> Iterator[Conflict]:
        """Check the form of the tokenizer's name."""
        kind, _, size = self.tokenizer.partition(":")
        learned = kind in ("bpe", "sentencepiece") and re.fullmatch(r"\d{0,7}", size)
        if not (
            self.tokenizer in ("char", "byte")
            or learned
            or (kind == "tiktoken" and size)
            or self.tokenizer.endswith((".json", ".model"))
        ):
            forms = "char, byte, bpe:SIZE, sentencepiece:SIZE, tiktoken:NAME, or a tokenizer.json or .model file"
            hint = nearest(kind, ("char", "byte", "bpe", "sentencepiece", "tiktoken")) or f"choose {forms}"
            yield Conflict(
                ("tokenizer",), f"{shortened(self.tokenizer, 40)!r} is not a tokenizer; {hint} (--data.tokenizer)"
            )


class TrainConfig(Config):
    """Settings of training: length, learning rate, and outputs."""

    steps: Count | None = Field(None, description="Stop after this many optimizer steps")
    minutes: Positive | None = Field(
        None, description="Stop after this much training time; the learning rate schedule follows the clock"
    )
    epochs: Positive | None = Field(None, description="Stop after this many passes over the training tokens")
    batch_size: Count = Field(16, description="Sequences per optimizer step")
    micro_batch_size: Count | None = Field(
        None, description="Sequences per forward pass; must divide batch_size (default: batch_size)"
    )
    optimizer: str = Field(
        "adamw",
        description="adamw for all parameters; muon for the matrices of the blocks and AdamW for the others; "
        "or torch:NAME, a class of torch.optim such as torch:SGD",
    )
    learning_rate: Positive = Field(1e-3, description="Peak learning rate of AdamW, or of the class of torch.optim")
    matrix_learning_rate: Positive = Field(0.02, description="Muon's peak learning rate")
    table_learning_rate: Positive = Field(
        0.1, description="Peak learning rate of the n-gram table, which AdaGrad trains"
    )
    momentum: Probability = Field(0.95, description="Momentum of Muon, or of the class of torch.optim")
    schedule: Literal["constant", "linear", "cosine", "wsd", "inverse-root"] = Field(
        "cosine",
        description="Learning rate after the warm-up; wsd: constant, then linear decay; "
        "inverse-root: as in the first Transformer",
    )
    warmup_steps: Amount = Field(50, description="Steps of linear warm-up")
    final_lr_fraction: Share = Field(0.1, description="Final learning rate, as a fraction of the peak")
    decay_fraction: float = Field(
        0.2, gt=0.0, le=1.0, description="Fraction of the steps after the warm-up in which wsd decays"
    )
    weight_decay: Weight = Field(
        0.1, description="Decoupled weight decay of the parameters that `decay` selects, and of Muon's matrices"
    )
    decay: Literal["matrices", "all"] = Field(
        "matrices",
        description="Parameters with weight decay: the matrices of linear layers, or all but the n-gram table",
    )
    beta1: Probability = Field(0.9, description="AdamW's decay rate of the first moment")
    beta2: Probability = Field(0.99, description="AdamW's decay rate of the second moment")
    label_smoothing: Probability = Field(
        0.0, description="Label smoothing in training: probability that is spread over all tokens"
    )
    grad_clip: Weight = Field(1.0, description="Maximum gradient norm; 0: no clipping")
    patience: Count | None = Field(
        None, description="Stop after this many evaluations in a row without a new best loss"
    )
    eval_every: Count | None = Field(
        None, description="Steps between evaluations (default: a tenth of the run; more if evaluations are slow)"
    )
    eval_batch_size: Count = Field(64, description="Sequences per forward pass in evaluation")
    on_divergence: Literal["stop", "rollback", "skip"] = Field(
        "stop",
        description="If a loss or gradient is not finite: stop the run; roll back to the last checkpoint and halve the "
        "learning rate (at most 3 times); or skip the batch (at most 10 in a row)",
    )
    save_every: Count | None = Field(None, description="Steps between checkpoints (default: at each evaluation)")
    keep: Count = Field(2, description="Number of checkpoints to keep, besides the best")
    on_save_failure: Literal["stop", "continue"] = Field(
        "stop",
        description="If a checkpoint cannot be written: stop the run with the last good one, "
        "or continue and try again at the next",
    )
    log_every: Count | None = Field(
        None, description="Steps between lines of metrics.jsonl (default: a hundredth of the run)"
    )
    sample_tokens: Amount = Field(400, description="Tokens to sample after each evaluation; 0: none")
    sample_prompt: str = Field("\n", description="Prompt of these samples")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: bfloat16 autocast if the hardware has bfloat16 matrix units, else float32"
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto", description="torch.compile; auto: on for CUDA runs of at least 1,000 steps or 5 minutes"
    )
    threads: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="CPU threads of each process (default: 1 for small models, else PyTorch's choice)",
    )
    ranks: int = Field(1, ge=1, le=1024, description="Data-parallel processes: one per GPU, or several on a CPU")
    tensorboard: bool = Field(False, description="Also write TensorBoard events into the run folder (extra: track)")

    def conflicts(self) -> Iterator[Conflict]:
        """Check that the optimizer exists, that there is one run length, and that micro-batches add up to a batch."""
        if self.optimizer not in (*OPTIMIZERS, CUSTOM):
            yield Conflict(("optimizer",), _no_optimizer(self.optimizer))
        given = [name for name in ("steps", "minutes", "epochs") if getattr(self, name) is not None]
        if len(given) > 1:
            yield Conflict(tuple(given), f"{' and '.join(given)} exclude one another: give one length for the run")
        if self.batch_size % self.ranks:
            yield Conflict(
                ("ranks", "batch_size"),
                f"ranks={self.ranks} does not divide batch_size={self.batch_size} (--train.ranks)",
            )
            return
        if self.batch_size % self.rows:
            why = (
                f"micro_batch_size={self.rows} does not divide batch_size={self.batch_size} (--train.micro-batch-size)"
            )
            yield Conflict(("micro_batch_size", "batch_size"), why)

    @property
    def torch_optimizer(self) -> str | None:
        """Name of the class of torch.optim, such as "SGD"; None for gptloom's optimizers."""
        kind, _, name = self.optimizer.partition(":")
        return name if kind == "torch" else None

    @property
    def rows(self) -> int:
        """Sequences per forward pass, on each rank."""
        return min(self.micro_batch_size or self.batch_size, self.batch_size // self.ranks)


def _no_optimizer(name: str) -> str:
    """Describe an unknown name of an optimizer."""
    given = shortened(name, 40)
    if name in ("torch:LBFGS", "torch:SparseAdam"):
        return f"{given!r} cannot train here: it needs a closure or sparse gradients (--train.optimizer)"
    alike = {one.lower(): one for one in OPTIMIZERS}.get(name.lower())
    hint = f"did you mean {alike!r}?" if alike else nearest(name, OPTIMIZERS) or f"choose from {', '.join(OPTIMIZERS)}"
    return f"{given!r} is not an optimizer; {hint} (--train.optimizer)"


class RunConfig(Config):
    """All settings of a run, as in `config.toml` of a run folder."""

    recipe: str = Field("tiny", description="Recipe that provides the defaults of all other settings")
    seed: int = Field(1337, ge=0, lt=2**63, description="Seed of all randomness: weights, batches, dropout, samples")
    device: str = Field("auto", description="auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:N or mps")
    data: DataConfig = Field(default_factory=DataConfig, description="Text, tokens, windows")
    model: ModelConfig = Field(default_factory=lambda: ModelConfig(), description="The model's shape")
    train: TrainConfig = Field(default_factory=lambda: TrainConfig(), description="Training")

    def conflicts(self) -> Iterator[Conflict]:
        """Check the name of the device."""
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", self.device):
            yield Conflict(
                ("device",),
                f"{shortened(self.device, 40)!r} is not a device; choose auto, cpu, cuda, cuda:0 or mps (--device)",
            )


class SampleConfig(Config):
    """Settings of sampling.

    They apply in this order: repetition penalty, temperature, top-k, top-p, min-p.
    """

    tokens: Count = Field(300, description="Maximum number of tokens to generate")
    samples: int = Field(1, ge=1, le=10_000, description="Number of texts")
    repetition_penalty: float = Field(
        1.0, ge=1.0, le=1000.0, description="Divide the logits of tokens that already occurred (1: off)"
    )
    temperature: Weight = Field(0.8, description="Divide the logits by this; 0: always take the most likely token")
    top_k: Count | None = Field(None, description="Sample from the k most likely tokens")
    top_p: float | None = Field(
        None, gt=0.0, le=1.0, description="Sample from the most likely tokens that together reach this probability"
    )
    min_p: Share | None = Field(
        None, description="Sample from tokens with at least this probability, relative to the most likely one"
    )
    seed: int = Field(1337, ge=0, lt=2**63, description="Seed of the sampling")
    stop: tuple[str, ...] = Field((), description="End a text before this string (may be given several times)")
    beams: int = Field(1, ge=1, le=10_000, description="Number of beams of a beam search; 1: sampling")
    length_penalty: float = Field(1.0, ge=0.0, le=10.0, description="Divide beam scores by length to this power")

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    def conflicts(self) -> Iterator[Conflict]:
        """Check that a beam search has enough beams, and that no setting is without effect."""
        if "" in self.stop:
            yield Conflict(("stop",), "an empty stop string would end every text at its start (--stop)")
        if self.beams == 1 and self.length_penalty != 1.0:
            yield Conflict(("length_penalty", "beams"), "length_penalty scores beams, and there are none (--beams)")
        neutral = {"repetition_penalty": (1.0,), "top_k": (None,), "top_p": (None, 1.0), "min_p": (None, 0.0)}
        if "temperature" in self.model_fields_set:
            neutral["temperature"] = (0.0,)
        for name in [name for name, values in neutral.items() if getattr(self, name) not in values]:
            if self.beams > 1:
                yield Conflict(
                    ("beams", name),
                    f"a beam search draws no tokens, so {name}={getattr(self, name):g} has no meaning with "
                    f"beams={self.beams}; leave one of them out (--beams, --{name.replace('_', '-')})",
                )
        if 1 < self.beams < self.samples:
            yield Conflict(
                ("beams", "samples"),
                f"a search with {self.beams} beams cannot return {self.samples} texts (--beams, --samples)",
            )


class LadderConfig(Config):
    """Settings of a ladder: how long and how often each of the lecture's steps is trained."""

    steps: Count | None = Field(
        None,
        description="Training length of every step, in optimizer steps of 256 tokens; "
        "larger batches take fewer (default: 5000)",
    )
    minutes: Positive | None = Field(
        None, description="Time for the whole ladder; spare time goes to more seeds, up to 5, unless --seeds is given"
    )
    seeds: Count | None = Field(
        None,
        description="Number of trainings of every step, each with its own seed (default: 2; "
        "with --minutes, more if there is time)",
    )
    only: str | None = Field(None, description="Comma-separated steps; the steps that they are compared with are added")
    seed: int = Field(1337, ge=0, lt=2**62, description="First seed; the others follow it")
    device: str = Field("auto", description="auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:N or mps")
    tokenizer: str = Field(
        "char",
        description="char, byte, bpe:SIZE, sentencepiece:SIZE, tiktoken:NAME, "
        "or the path of a tokenizer.json or .model file",
    )

    def conflicts(self) -> Iterator[Conflict]:
        """Check that there is one length."""
        if self.steps is not None and self.minutes is not None:
            yield Conflict(
                ("steps", "minutes"), "steps and minutes exclude one another: give one length for the ladder"
            )
