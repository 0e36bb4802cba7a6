"""Checks of the trainer in float64: micro-batches, zeroed gradients, clipping, learning rate and update."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gptloom.checkpoint.state import Horizon, Progress
from gptloom.config.run import RunConfig, TrainConfig
from gptloom.model.base import LanguageModel
from gptloom.model.ngram import HashedNgrams
from gptloom.reference.formulas import EPSILON, length, rate_at, reference_update, shrinking
from gptloom.studies.verify.subject import Batch, Subject, gradients
from gptloom.studies.verify.tolerance import DOUBLE, Outcome, norms, worst
from gptloom.training.optim import CombinedOptimizer, make_optimizer
from gptloom.training.setup import setup


@dataclass
class Walk:
    """A record of some steps of the trainer.

    Attributes:
        gradients: the clipped gradients of each step, by parameter name.
        rates: the learning rate of each step.
        before: the weights at the start, by name.
        after: the weights at the end, by name.
    """

    gradients: list[dict[str, Tensor]] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    before: dict[str, Tensor] = field(default_factory=dict)
    after: dict[str, Tensor] = field(default_factory=dict)


class Watched(CombinedOptimizer):
    """The configuration's optimizer, which records gradients and learning rates; a frozen one changes no weights."""

    def __init__(self, model: nn.Module, config: TrainConfig, walk: Walk, *, frozen: bool) -> None:
        """Make the configuration's optimizer."""
        super().__init__([make_optimizer(model, config)])
        self.named, self.walk, self.frozen, self.rate = (
            dict(model.named_parameters()),
            walk,
            frozen,
            config.learning_rate,
        )

    def step(self) -> None:
        """Record the gradients and AdamW's learning rate, then step."""
        (first, *_) = self.param_groups
        self.walk.rates.append(self.rate * first["lr"] / first["initial_lr"])
        self.walk.gradients.append(
            {
                name: torch.zeros_like(p) if p.grad is None else p.grad.to_dense().clone()
                for name, p in self.named.items()
            }
        )
        if not self.frozen:
            super().step()


class Listed:
    """A list of batches, one per step."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        """Store them."""
        self.batches = batches

    def batch(self, step: int) -> Batch:
        """The batch of a step."""
        return self.batches[step]


def walk(
    model: LanguageModel, batches: Sequence[Batch], train: TrainConfig, *, rows: int = 0, frozen: bool = False
) -> Walk:
    """Train a copy of a model with the trainer, one step per batch.

    Args:
        model: it is not changed, and is in evaluation mode, so there is no dropout.
        batches: the batches of the steps.
        train: the settings of the steps.
        rows: sequences per forward pass (0: all).
        frozen: the weights do not change.
    """
    model, found = copy.deepcopy(model), Walk()
    alone: dict[str, Any] = {"batch_size": len(batches[0][0]), "micro_batch_size": None, "patience": None, "ranks": 1}
    train = train.model_copy(update=alone | {"precision": "float32", "compile": "off"})
    optimizer = Watched(model, train, found, frozen=frozen)
    found.before = {name: p.detach().clone() for name, p in model.named_parameters()}
    setup(
        RunConfig(model=model.config, train=train),
        model=model,
        batches=Listed(batches),
        horizon=Horizon(None, len(batches)),
        optimizer=optimizer,
        progress=Progress(rows=rows),
    ).fit()
    found.after = {name: p.detach().clone() for name, p in model.named_parameters()}
    return found


def micro_batches(subject: Subject) -> Outcome:
    """Compare gradients of passes of 1, 3 and all rows, whose target counts differ, with those of the mean loss."""
    batch, train = subject.ragged_batch(), subject.config.train.model_copy(update={"grad_clip": 0.0})
    expected = gradients(subject.exact, batch, train.label_smoothing)
    found = []
    for rows in sorted({1, max(1, len(batch[0]) - 1), len(batch[0])}):
        (got,) = walk(subject.exact, [batch], train, rows=rows, frozen=True).gradients
        found.append(Outcome(norms(_values(got), _values(expected)), subject.double_tolerance, f"{rows} rows a pass"))
    return worst(found)


def fresh_gradients(subject: Subject) -> Outcome:
    """Compare the gradients of a second step with those of its batch alone."""
    batches, train = [subject.batch(0), subject.batch(1)], subject.config.train.model_copy(update={"grad_clip": 0.0})
    got = walk(subject.exact, batches, train, frozen=True).gradients[-1]
    expected = gradients(subject.exact, batches[1], train.label_smoothing)
    return Outcome(norms(_values(got), _values(expected)), subject.double_tolerance)


def clipping(subject: Subject) -> Outcome:
    """Clip gradients to a third of their norm, and compare them with the same gradients, scaled."""
    batch = subject.ragged_batch()
    raw = gradients(subject.exact, batch, subject.config.train.label_smoothing)
    size = length(raw)
    train = subject.config.train.model_copy(update={"grad_clip": size / 3})
    (got,) = walk(subject.exact, [batch], train, frozen=True).gradients
    expected = [g * shrinking(size, size / 3) for g in raw.values()]
    # The length is a plain sum of as many squares as there are parameters, each addition of which may round (Higham
    # 2002, section 4.2).
    return Outcome(norms(_values(got), expected), subject.double_tolerance + subject.drawn.parameter_count() * DOUBLE)


def learning_rates(subject: Subject) -> Outcome:
    """Compare the learning rates of ten steps with the schedule's formula."""
    train = subject.config.train.model_copy(update={"warmup_steps": min(3, subject.config.train.warmup_steps)})
    batch = subject.batch(rows=1, time=min(8, subject.time))
    rates = walk(subject.exact, [batch] * 10, train, frozen=True).rates
    expected = [rate_at(train, step, 10) for step in range(10)]
    gap = max(abs(one - other) for one, other in zip(rates, expected, strict=True)) / train.learning_rate
    return Outcome(gap, 16 * DOUBLE)


def update(subject: Subject) -> Outcome:
    """Compare the weights after three steps with the optimizers' formulas, in units of the learning rate."""
    batches = [subject.ragged_batch(step) for step in range(3)]
    size = length(gradients(subject.exact, batches[0]))
    clip = size / 2 if subject.config.train.grad_clip else 0.0
    train = subject.config.train.model_copy(update={"grad_clip": clip, "warmup_steps": 1})
    got = walk(subject.exact, batches, train)

    def slopes(model: LanguageModel, step: int) -> dict[str, Tensor]:
        return gradients(model, batches[step], train.label_smoothing)

    if train.torch_optimizer is None:
        expected = reference_update(subject.exact, train, len(batches), slopes)
    else:
        expected = by_torch(subject.exact, train, len(batches), slopes)
    gap = (
        float(torch.stack([(got.after[name] - p).abs().max() for name, p in expected.items()]).max())
        / train.learning_rate
    )
    # A gradient that is 0 by the formulas is a rounding error in practice, which AdamW divides by 1e-8; a step is then
    # of that ratio's size. Gradients are rounded by SAFETY roundings of the longest; three steps and their two means
    # add up.
    noise = subject.double_tolerance * size / EPSILON
    return Outcome(
        gap, 10 * (noise + DOUBLE / train.learning_rate * max(float(p.abs().max()) for p in expected.values()))
    )


def by_torch(
    model: LanguageModel, train: TrainConfig, steps: int, slopes: Callable[[LanguageModel, int], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """As `reference_update`, for a class of torch.optim: learning rates and clipping are computed by their formulas."""
    model = copy.deepcopy(model)
    optimizer = make_optimizer(model, train)
    for step in range(steps):
        found = slopes(model, step)
        shrink = shrinking(length(found), train.grad_clip) if train.grad_clip else 1.0
        for name, p in model.named_parameters():
            p.grad = found[name] * shrink
        for group in optimizer.param_groups:
            group["lr"] = rate_at(train, step, steps)
        optimizer.step()
    return {name: p.detach() for name, p in model.named_parameters()}


def groups(subject: Subject) -> Outcome:
    """Count the parameters that are in no group or in several, or have the wrong weight decay."""
    train = subject.config.train.model_copy(update={"weight_decay": subject.config.train.weight_decay or 0.1})
    model = copy.deepcopy(subject.drawn)
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding | HashedNgrams)}
    hashed = {id(m.weight) for m in _hashed(model)}
    matrices = {id(p) for p in model.parameters() if p.ndim > 1} - tables
    expected = {
        name: id(p) not in hashed and (train.decay == "all" or id(p) in matrices)
        for name, p in model.named_parameters()
    }
    optimizer = make_optimizer(model, train)
    trained = [(name, group["weight_decay"]) for group in optimizer.param_groups for name in group["param_names"]]
    wrong = [
        name for name, decays in expected.items() if [decay > 0 for one, decay in trained if one == name] != [decays]
    ]
    held = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    wrong += [f"{held:,} numbers instead of {model.parameter_count():,}"] * (held != model.parameter_count())
    return Outcome(float(len(wrong)), 0.0, ", ".join(wrong[:3]))


def _hashed(model: nn.Module) -> list[HashedNgrams]:
    return [module for module in model.modules() if isinstance(module, HashedNgrams)]


def _values(slopes: dict[str, Tensor]) -> list[Tensor]:
    return list(slopes.values())
