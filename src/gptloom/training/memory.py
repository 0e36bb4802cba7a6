"""What a training holds in memory between its passes."""

from dataclasses import dataclass

from gptloom.config import RunConfig
from gptloom.model.build import outline
from gptloom.model.ngrams import HashedNgrams
from gptloom.training.optim import hidden_matrices

FLOAT, INDEX = 4, 8
"""Bytes of a number, and of the number of a row."""


@dataclass(frozen=True)
class Held:
    """Bytes on each device.

    Attributes:
        weights: of the model.
        gradients: of its weights; of a table of n-grams on a CPU, those of the rows that a batch looks up, at most.
        optimizer: two means a weight with AdamW, one with Muon, and a number a row with AdaGrad.
    """

    weights: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer


def held_bytes(config: RunConfig, *, on_cpu: bool) -> Held:
    """What the optimizers of `make_optimizer` hold from one step to the next, in float32; what an update needs meanwhile is not counted."""
    model, train = outline(config.model), config.train
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    tables = {f"{name}.weight": part for name, part in model.named_modules() if isinstance(part, HashedNgrams)}
    with_momentum = hidden_matrices(model) if train.optimizer == "muon" else set[str]()
    gradients = optimizer = 0
    for name, size in sizes.items():
        if name in tables:
            rows, width = tables[name].weight.shape
            looked_up = min(rows, train.batch_size * config.model.block_size * (tables[name].longest - 1))
            gradients += looked_up * (FLOAT * width + INDEX) if on_cpu and train.ranks == 1 else FLOAT * size
            optimizer += FLOAT * rows
        else:
            gradients += FLOAT * size
            optimizer += FLOAT * size * (1 if name in with_momentum else 2)
    return Held(FLOAT * sum(sizes.values()), gradients, optimizer)
