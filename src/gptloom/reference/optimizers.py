"""The optimizers and the schedule once more, from their papers: plain loops over one parameter at a time."""

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from gptloom.config.run import TrainConfig
from gptloom.model.base import LanguageModel
from gptloom.model.ngram import HashedNgrams

EPSILON = 1e-8
"""AdamW's, and every recipe's."""


def reference_update(
    model: LanguageModel, train: TrainConfig, steps: int, gradients: Callable[[LanguageModel, int], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """The weights after some steps of the run's optimizer, with clipping and the run's schedule.

    AdamW: Loshchilov and Hutter 2019, algorithm 2. Muon: Jordan et al. 2024, for the matrices of linear and recurrent
    layers but the head. AdaGrad: Duchi et al. 2011, with one sum a row, for tables of hashed n-grams.

    Args:
        model: stays as it is.
        train: the settings.
        steps: how many.
        gradients: those of the loss of a model at a step, by parameter.
    """
    model = copy.deepcopy(model)
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding | HashedNgrams)}
    hashed = {id(m.weight) for m in model.modules() if isinstance(m, HashedNgrams)}
    memory = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in model.named_parameters()}
    for step in range(steps):
        slopes = gradients(model, step)
        shrink = shrinking(length(slopes), train.grad_clip) if train.grad_clip else 1.0
        share = rate_at(train, step, steps) / train.learning_rate
        with torch.no_grad():
            for name, p in model.named_parameters():
                g, (m, v) = slopes[name] * shrink, memory[name]
                is_matrix = p.ndim > 1 and id(p) not in tables
                decays = train.weight_decay * (train.decay == "all" or is_matrix)
                if id(p) in hashed:
                    _adagrad(p, g, v, train.table_learning_rate * share)
                elif train.optimizer == "muon" and is_matrix and name != "head.weight":
                    _muon(p, g, m, train, train.matrix_learning_rate * share)
                else:
                    _adamw(p, g, m, v, train, step, train.learning_rate * share, decays)
    return {name: p.detach() for name, p in model.named_parameters()}


def _adamw(
    p: Tensor, g: Tensor, m: Tensor, v: Tensor, train: TrainConfig, step: int, rate: float, decay: float
) -> None:
    m.copy_(train.beta1 * m + (1 - train.beta1) * g)
    v.copy_(train.beta2 * v + (1 - train.beta2) * g * g)
    ahead = m / (1 - train.beta1 ** (step + 1)) / ((v / (1 - train.beta2 ** (step + 1))).sqrt() + EPSILON)
    p.copy_(p - rate * decay * p - rate * ahead)


def _muon(p: Tensor, g: Tensor, m: Tensor, train: TrainConfig, rate: float) -> None:
    m.copy_(train.momentum * m + (1 - train.momentum) * g)
    x = train.momentum * m + (1 - train.momentum) * g
    x = x / (x.pow(2).sum().sqrt() + 1e-7)
    for _ in range(5):
        x = 3.4445 * x - 4.7750 * (x @ x.T @ x) + 2.0315 * (x @ x.T @ x @ x.T @ x)
    p.copy_(p - rate * train.weight_decay * p - rate * math.sqrt(max(1.0, p.shape[0] / p.shape[1])) * x)


def _adagrad(p: Tensor, g: Tensor, v: Tensor, rate: float) -> None:
    for row in g.abs().sum(1).nonzero()[:, 0].tolist():
        v[row] += g[row].pow(2).mean()
        p[row] -= rate * g[row] / v[row].sqrt()


def rate_at(train: TrainConfig, step: int, total: int) -> float:
    """The schedules' formulas once more."""
    warm = min(train.warmup_steps, total // 2)
    if step < warm:
        return train.learning_rate / warm * (step + 1)
    done = (step - warm) / max(1, total - warm)
    shape = {
        "constant": 1.0,
        "linear": 1 - done,
        "cosine": (1 + math.cos(math.pi * done)) / 2,
        "wsd": min(1.0, (1 - done) / train.decay_fraction),
        "inverse-root": math.sqrt(max(1, warm) / (step + 1)),
    }[train.schedule]
    lowest = train.learning_rate * train.final_lr_fraction
    return lowest + (train.learning_rate - lowest) * shape


def length(slopes: dict[str, Tensor]) -> float:
    """Of a whole gradient."""
    return float(torch.stack([torch.linalg.vector_norm(g) for g in slopes.values()]).norm())


def shrinking(size: float, most: float) -> float:
    """What a gradient is multiplied with; the small number is PyTorch's, against division by 0."""
    return min(1.0, most / (size + 1e-6))
