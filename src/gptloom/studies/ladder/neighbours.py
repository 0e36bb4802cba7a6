"""Compare the Transformer with recurrent networks of equal size: loss over time, and gradient over distance."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gptloom.config.load import merge, parse
from gptloom.config.model import ModelConfig
from gptloom.config.run import RunConfig
from gptloom.errors import ConfigError
from gptloom.interpret.statistics import gradient_by_distance
from gptloom.model.build import build_model
from gptloom.studies.trial import Material, Trial, run_trial

ARCHITECTURES = ("decoder", "rnn", "lstm", "gru")
EVALUATIONS = 10
ALIKE = {
    "model": {"ngrams": 1},
    "train": {"optimizer": "adamw", "weight_decay": 0.1, "grad_clip": 1.0, "warmup_steps": 50},
}
"""Settings shared by all architectures; they replace the recipe's. There is no n-gram embedding, and AdamW trains."""

_ROWS = 16  # validation windows for the mean gradient


@dataclass(frozen=True)
class Neighbour:
    """The results of one architecture.

    Attributes:
        name: the architecture.
        width: n_embd; it gives about as many parameters as the decoder has.
        trial: the result of its training.
        distances: distances in tokens between a prediction and an earlier token.
        gradients: the mean norm of d loss / d embedding at each distance, after training.
    """

    name: str
    width: int
    trial: Trial
    distances: list[int]
    gradients: list[float]

    @property
    def reach(self) -> int:
        """The largest distance at which the gradient is at least 1 % of that at distance 0."""
        return max(
            k for k, size in zip(self.distances, self.gradients, strict=True) if size >= 0.01 * self.gradients[0]
        )


def count_parameters(config: ModelConfig) -> int:
    """The number of parameters; the model is built on the meta device."""
    with torch.device("meta"):
        return build_model(config).parameter_count()


def match_width(config: ModelConfig, architecture: str, wanted: int) -> ModelConfig:
    """The settings of another architecture, with the width whose number of parameters is nearest to `wanted`.

    Raises:
        ConfigError: the other settings do not fit this architecture.
    """
    step = 1 if architecture in ("rnn", "lstm", "gru") else 2 * config.n_head

    def at(multiple: int) -> ModelConfig:
        return parse(
            ModelConfig,
            config.model_dump() | {"architecture": architecture, "n_embd": multiple * step},
            where=architecture,
        )

    low, high = 1, 2
    while count_parameters(at(high)) < wanted:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count_parameters(at(middle)) < wanted else (low, middle)
    return min((at(low), at(high)), key=lambda shape: abs(count_parameters(shape) - wanted))


def compare_neighbours(
    config: RunConfig,
    material: Material,
    *,
    architectures: Sequence[str] = ARCHITECTURES,
    say: Callable[[str], None] = print,
) -> list[Neighbour]:
    """Train each architecture with the same settings, text, batches and number of parameters.

    Args:
        config: the decoder's settings, including the steps or minutes of each training.
        material: the text.
        architectures: names from `ARCHITECTURES`.
        say: a function that is called with a line about each finished training.

    Raises:
        ConfigError: there is no such architecture.
    """
    unknown = set(architectures) - set(ARCHITECTURES)
    if unknown:
        raise ConfigError(
            f"no architecture {', '.join(sorted(unknown))} for running text",
            where="neighbours",
            cure=f"choose from {', '.join(ARCHITECTURES)}",
        )
    decoder = parse(
        ModelConfig, config.model.model_dump() | {"vocab_size": material.tokenizer.vocab_size}, where="the tokenizer"
    )
    wanted, found = count_parameters(decoder), []
    for name in architectures:
        shape = decoder if name == "decoder" else match_width(decoder, name, wanted)
        changes: Mapping[str, object] = {"model": shape.model_dump()}
        if config.train.steps is not None and config.train.eval_every is None:
            changes = {**changes, "train": {"eval_every": max(1, config.train.steps // EVALUATIONS)}}
        trial, bundle = run_trial(parse(RunConfig, merge(config.model_dump(), changes), where=name), material)
        distances, gradients = gradient_by_distance(bundle.model, _windows(material, shape.block_size))
        found.append(Neighbour(name, shape.n_embd, trial, distances, gradients))
        say(
            f"{name}: {trial.parameters:,} parameters, "
            f"loss {trial.val_loss:.4f} after {trial.steps:,} steps in {trial.seconds:.0f} s"
        )
    return found


def _windows(material: Material, block_size: int) -> torch.Tensor:
    """Evenly spaced windows of the validation text, (rows, block_size + 1) or shorter if the text is."""
    ids = material.parts.val.ids
    time = min(block_size + 1, len(ids))
    starts = np.linspace(0, len(ids) - time, _ROWS).astype(np.int64)
    return torch.from_numpy(ids[starts[:, None] + np.arange(time)].astype(np.int64))
