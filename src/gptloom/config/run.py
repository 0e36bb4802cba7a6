"""Every knob, typed, once. The flag, its help, the TOML key and the saved JSON all come from the fields below."""

import re
from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from gptloom.config.base import MOST, Amount, Config, Conflict, Count, Positive, Probability, Share, Weight
from gptloom.config.model import ModelConfig
from gptloom.errors import nearest, shortened

IGNORE_INDEX = -1
"""A target with this value is not predicted and does not count: the one number that data and model agree on."""

TORCH_OPTIMIZERS = (
    *("ASGD", "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax"),
    *("Muon", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD"),
)
"""The classes of torch.optim that train dense parameters without a closure. Named here, so that torch is not loaded."""

OPTIMIZERS = ("adamw", "muon", *(f"torch:{name}" for name in TORCH_OPTIMIZERS))
"""The names that --train.optimizer takes."""

CUSTOM = "custom"
"""What a run's settings say where its optimizer was given as an object of Python."""

OnUnknown = Literal["error", "skip", "replace"]
Weights = Literal["float32", "int8"]
Sampling = Literal["random", "shuffled", "documents"]


class DataConfig(Config):
    """What is read, how it becomes ids, and how they are cut into windows."""

    tokenizer: str = Field(
        "char",
        description="char, byte, bpe:SIZE, sentencepiece:SIZE, tiktoken:NAME, or the path of a tokenizer.json or .model file",
    )
    text_field: str = Field("text", description="The field (JSON Lines) or column (CSV) that holds the text")
    encoding: str | None = Field(None, description="Text encoding (default: UTF-8, else detected)")
    on_unknown: OnUnknown = Field("error", description="What to do with characters that the tokenizer does not have")
    val_fraction: float = Field(
        0.1, gt=0.0, lt=1.0, description="Share of the text, at its end, that is kept for validation"
    )
    val_tokens: int = Field(
        500_000, ge=2, le=MOST, description="Longest validation share, in tokens: it is read whole at every evaluation"
    )
    val_text: str | None = Field(None, description="A file to validate on, instead of a share of the text")
    split: Literal["position", "document"] = Field(
        "position", description="Cut off the validation share at a token, or at the nearest document"
    )
    sampling: Sampling = Field(
        "random", description="Training windows: random starts; each window once an epoch; or each within one document"
    )
    mask_fraction: float = Field(0.15, gt=0.0, lt=1.0, description="Share of the tokens that an encoder has to fill in")
    cache: str | None = Field(
        None, description="Folder for token files and data sets (default: the user's cache folder)"
    )

    def conflicts(self) -> Iterator[Conflict]:
        """A tokenizer's name has one of a few forms."""
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
                ("tokenizer",), f"{shortened(self.tokenizer, 40)!r} is no tokenizer; {hint} (--data.tokenizer)"
            )


class TrainConfig(Config):
    """How long, how fast, and what is reported on the way."""

    steps: Count | None = Field(None, description="Stop after this many optimizer steps")
    minutes: Positive | None = Field(
        None, description="Stop after this much training time; the schedule follows the clock to its end"
    )
    epochs: Positive | None = Field(None, description="Stop after this many passes over the training tokens")
    batch_size: Count = Field(16, description="Sequences per optimizer step")
    micro_batch_size: Count | None = Field(
        None, description="Sequences per forward pass; must divide batch_size (default: batch_size)"
    )
    optimizer: str = Field(
        "adamw",
        description="adamw; muon for the matrices inside the blocks, with adamw for the rest; "
        "or torch:NAME, a class of torch.optim such as torch:SGD",
    )
    learning_rate: Positive = Field(1e-3, description="Peak learning rate of AdamW, or of the class of torch.optim")
    matrix_learning_rate: Positive = Field(0.02, description="Muon's peak learning rate")
    table_learning_rate: Positive = Field(
        0.1, description="Peak learning rate of the rows of hashed n-grams, which AdaGrad trains"
    )
    momentum: Probability = Field(
        0.95, description="Muon's decay of the mean gradient, or the momentum of torch.optim's"
    )
    schedule: Literal["constant", "linear", "cosine", "wsd", "inverse-root"] = Field(
        "cosine",
        description="Learning rate after the warm-up; wsd stays at the peak, then falls; inverse-root is the first Transformer's",
    )
    warmup_steps: Amount = Field(50, description="Steps over which the learning rate rises")
    final_lr_fraction: Share = Field(0.1, description="Learning rate at the end, as a share of the peak")
    decay_fraction: float = Field(
        0.2, gt=0.0, le=1.0, description="Share of the steps after the warm-up over which wsd falls"
    )
    weight_decay: Weight = Field(
        0.1, description="Decoupled decay of the weights that `decay` names, and of Muon's matrices"
    )
    decay: Literal["matrices", "all"] = Field(
        "matrices", description="Which parameters decay: the matrices of linear layers, or all but tables of n-grams"
    )
    beta1: Probability = Field(0.9, description="AdamW's decay of the mean gradient")
    beta2: Probability = Field(0.99, description="AdamW's decay of the mean squared gradient")
    label_smoothing: Probability = Field(
        0.0, description="Share of each target's probability that is spread over all tokens, in training"
    )
    grad_clip: Weight = Field(1.0, description="Largest gradient norm; 0 switches clipping off")
    patience: Count | None = Field(None, description="Stop after this many evaluations in a row without a new best")
    eval_every: Count | None = Field(
        None, description="Steps between evaluations (default: a tenth of the run; fewer where they would take long)"
    )
    eval_batch_size: Count = Field(64, description="Sequences per forward pass in evaluation")
    on_divergence: Literal["stop", "rollback", "skip"] = Field(
        "stop",
        description="When a loss or a gradient is not finite: end the run; go back to the last checkpoint and on at half the rate (3 times at most); "
        "or pass over the batch (10 in a row at most)",
    )
    save_every: Count | None = Field(None, description="Steps between checkpoints (default: at each evaluation)")
    keep: Count = Field(2, description="Checkpoints kept, besides the best")
    on_save_failure: Literal["stop", "continue"] = Field(
        "stop",
        description="When a checkpoint cannot be written: end the run with the last good one, or go on and try again at the next",
    )
    log_every: Count | None = Field(
        None, description="Steps between lines of metrics.jsonl (default: a hundredth of the run)"
    )
    sample_tokens: Amount = Field(400, description="Tokens sampled after each evaluation; 0 switches it off")
    sample_prompt: str = Field("\n", description="What those samples continue")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto is bfloat16 autocast where the hardware has matrix units for it"
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto", description="torch.compile; auto is on for CUDA runs of 1,000 steps or 5 minutes and more"
    )
    threads: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="CPU threads of each process (default: one for small work, else PyTorch's choice)",
    )
    ranks: int = Field(1, ge=1, le=1024, description="Processes that share each batch: one a GPU, or several on a CPU")
    tensorboard: bool = Field(False, description="Also write TensorBoard events into the run folder (extra: track)")

    def conflicts(self) -> Iterator[Conflict]:
        """One length, micro-batches that add up, and an optimizer that there is."""
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
        """The class of torch.optim that trains, such as "SGD"; None where gptloom's own optimizers do."""
        kind, _, name = self.optimizer.partition(":")
        return name if kind == "torch" else None

    @property
    def rows(self) -> int:
        """Sequences per forward pass, on each rank."""
        return min(self.micro_batch_size or self.batch_size, self.batch_size // self.ranks)


def _no_optimizer(name: str) -> str:
    """What is wrong with the name of an optimizer that there is none of."""
    given = shortened(name, 40)
    if name in ("torch:LBFGS", "torch:SparseAdam"):
        return f"{given!r} cannot train here: it needs a closure or sparse gradients (--train.optimizer)"
    alike = {one.lower(): one for one in OPTIMIZERS}.get(name.lower())
    hint = f"did you mean {alike!r}?" if alike else nearest(name, OPTIMIZERS) or f"choose from {', '.join(OPTIMIZERS)}"
    return f"{given!r} is no optimizer; {hint} (--train.optimizer)"


class RunConfig(Config):
    """A whole run: what `config.toml` in a run folder holds."""

    recipe: str = Field("tiny", description="The named set of settings that the others start from")
    seed: int = Field(
        1337, ge=0, lt=2**63, description="The one source of randomness: weights, batches, dropout, samples"
    )
    device: str = Field("auto", description="auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:N or mps")
    data: DataConfig = Field(default_factory=DataConfig, description="Text, tokens, windows")
    model: ModelConfig = Field(default_factory=lambda: ModelConfig(), description="The model's shape")
    train: TrainConfig = Field(default_factory=lambda: TrainConfig(), description="Training")

    def conflicts(self) -> Iterator[Conflict]:
        """A device's name is one that PyTorch gives."""
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", self.device):
            yield Conflict(
                ("device",),
                f"{shortened(self.device, 40)!r} is not a device; choose auto, cpu, cuda, cuda:0 or mps (--device)",
            )


class SampleConfig(Config):
    """How the next token is chosen. The order is fixed: repetition penalty, temperature, top-k, top-p, min-p."""

    tokens: Count = Field(300, description="Tokens to write, at most")
    samples: int = Field(1, ge=1, le=10_000, description="Number of texts")
    repetition_penalty: float = Field(
        1.0, ge=1.0, le=1000.0, description="Divide the score of tokens that have occurred (1: off)"
    )
    temperature: Weight = Field(0.8, description="Divide the logits by this; 0 takes the likeliest token")
    top_k: Count | None = Field(None, description="Keep the k likeliest tokens")
    top_p: float | None = Field(
        None, gt=0.0, le=1.0, description="Keep the likeliest tokens that together reach this probability"
    )
    min_p: Share | None = Field(None, description="Keep tokens at least this probable relative to the likeliest")
    seed: int = Field(1337, ge=0, lt=2**63, description="Seed of the draws")
    stop: tuple[str, ...] = Field((), description="End a text before this string (may be given several times)")
    beams: int = Field(1, ge=1, le=10_000, description="Beam search with this many beams, instead of drawing")
    length_penalty: float = Field(1.0, ge=0.0, le=10.0, description="Beam scores are divided by length to this power")

    def conflicts(self) -> Iterator[Conflict]:
        """A search returns at most what it keeps."""
        if 1 < self.beams < self.samples:
            yield Conflict(
                ("beams", "samples"),
                f"a search with {self.beams} beams cannot return {self.samples} texts (--beams, --samples)",
            )


class LadderConfig(Config):
    """How far and how often the lecture's steps are trained."""

    steps: Count | None = Field(
        None,
        description="Budget of every step, in the lecture's steps of 256 tokens; larger steps take fewer (default: 5000)",
    )
    minutes: Positive | None = Field(
        None, description="Time for the whole ladder; what is left over buys seeds, up to 5, unless --seeds is given"
    )
    seeds: Count | None = Field(
        None,
        description="Trainings of every step, each with a seed of its own (default: 2; with --minutes, more where they fit)",
    )
    only: str | None = Field(
        None, description="Some steps, separated by commas, and the ones that they are compared with"
    )
    seed: int = Field(1337, ge=0, lt=2**62, description="The first seed; the next ones follow it")
    device: str = Field("auto", description="auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:N or mps")
    tokenizer: str = Field(
        "char",
        description="char, byte, bpe:SIZE, sentencepiece:SIZE, tiktoken:NAME, or the path of a tokenizer.json or .model file",
    )

    def conflicts(self) -> Iterator[Conflict]:
        """One length."""
        if self.steps is not None and self.minutes is not None:
            yield Conflict(
                ("steps", "minutes"), "steps and minutes exclude one another: give one length for the ladder"
            )
