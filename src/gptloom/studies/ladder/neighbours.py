"""The Transformer beside what came before it: at equal parameters, loss against time, and gradient against distance."""

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
"""What nobody has an advantage from, over the recipe: no table of n-grams, which is no matter of architecture, and the plain optimizer with its usual care."""

_ROWS = 16  # validation windows that the gradient is averaged over


@dataclass(frozen=True)
class Neighbour:
    """One architecture's part in the study.

    Attributes:
        name: the architecture.
        width: n_embd, chosen so that the parameters are as many as the decoder's.
        trial: its training.
        distances: how far back a token lies.
        gradients: mean norm of d loss / d embedding of that token, after training.
    """

    name: str
    width: int
    trial: Trial
    distances: list[int]
    gradients: list[float]

    @property
    def reach(self) -> int:
        """The largest distance at which the gradient is still a hundredth of what it is at distance 0."""
        return max(
            k for k, size in zip(self.distances, self.gradients, strict=True) if size >= 0.01 * self.gradients[0]
        )


def count_parameters(config: ModelConfig) -> int:
    """Number of parameters, without drawing any."""
    with torch.device("meta"):
        return build_model(config).parameter_count()


def match_width(config: ModelConfig, architecture: str, wanted: int) -> ModelConfig:
    """The same model as another architecture, its width such that the parameters come nearest to `wanted`.

    Raises:
        ConfigError: the other fields do not go with this architecture.
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
        config: the decoder's settings, which also say how many steps or minutes each has.
        material: the text.
        architectures: which ones.
        say: told when each has finished.

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
            f"{name}: {trial.parameters:,} parameters, loss {trial.val_loss:.4f} after {trial.steps:,} steps in {trial.seconds:.0f} s"
        )
    return found


def _windows(material: Material, block_size: int) -> torch.Tensor:
    """Windows of the validation text, spread over it, (rows, block_size + 1) or as much as there is."""
    ids = material.parts.val.ids
    time = min(block_size + 1, len(ids))
    starts = np.linspace(0, len(ids) - time, _ROWS).astype(np.int64)
    return torch.from_numpy(ids[starts[:, None] + np.arange(time)].astype(np.int64))
