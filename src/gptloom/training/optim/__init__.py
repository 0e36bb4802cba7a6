"""Building the configured optimizer: gptloom's optimizers, a class of torch.optim, or a combination."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gptloom.checkpoint.state import Optimizer
from gptloom.config.base import shown
from gptloom.config.run import CUSTOM, TrainConfig
from gptloom.distributed import ProcessGroup
from gptloom.errors import ConfigError
from gptloom.fast.flat import packed_groups
from gptloom.model.ngram import HashedNgrams
from gptloom.training.optim.adagrad import RowAdagrad
from gptloom.training.optim.adamw import FlatAdamW, parameter_groups
from gptloom.training.optim.muon import Muon

OptimizerFactory = Callable[[list[dict[str, Any]]], Optimizer]
"""Builds an optimizer from parameter groups, as a class of torch.optim does."""


def make_optimizer(
    model: nn.Module,
    config: TrainConfig,
    group: ProcessGroup | None = None,
    *,
    factory: OptimizerFactory | None = None,
) -> Optimizer:
    """Build the optimizer of a configuration.

    Args:
        model: on its final device and in its final dtype. gptloom's optimizers turn its parameters into views of their
            buffers; those of torch.optim do not change them.
        config: optimizer, learning rates, betas, momentum and weight decay.
        group: the process group; Muon distributes its work over the ranks.
        factory: builds the optimizer instead of `config.optimizer`.

    Raises:
        ConfigError: the class of torch.optim rejects the model's parameters or the settings.
    """
    if factory is not None:
        made = factory(parameter_groups(model, config.weight_decay, config.decay))
        if not hasattr(made, "param_groups"):
            what = f"built {shown(made)}, not an optimizer"
            raise ConfigError(what, where="optimizer", cure="give a function such as torch.optim.SGD")
        return _named(made, model)
    if config.optimizer == CUSTOM:
        raise ConfigError(
            "the optimizer was a Python object, which is not saved in a run folder",
            where="train.optimizer=custom",
            cure="start a new run, and name the optimizer, such as torch:SGD",
        )
    if config.torch_optimizer is not None:
        return _torch_optimizer(model, config, config.torch_optimizer)
    tables = {f"{name}.weight": module for name, module in model.named_modules() if isinstance(module, HashedNgrams)}
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    parts: list[Optimizer] = []
    if config.optimizer == "muon":
        inside = hidden_matrices(model)
        matrices = [(name, p) for name, p in named.items() if name in inside]
        parts += [Muon(matrices, config, group or ProcessGroup())] if matrices else []
    parts += [RowAdagrad(name, module, config) for name, module in tables.items()]
    held = {name for part in parts for one in part.param_groups for name in one["param_names"]}
    if rest := [name for name in named if name not in held]:
        parts.append(FlatAdamW(model, config, only=rest))
    return parts[0] if len(parts) == 1 else CombinedOptimizer(parts)


def hidden_matrices(model: nn.Module) -> set[str]:
    """Return the names of the blocks' matrices: those of linear and recurrent layers, without tables and head."""
    tables = {id(p) for m in model.modules() if isinstance(m, nn.Embedding | HashedNgrams) for p in m.parameters()}
    return {
        name
        for name, p in model.named_parameters()
        if p.requires_grad and p.ndim == 2 and id(p) not in tables and name != "head.weight"
    }


def _torch_optimizer(model: nn.Module, config: TrainConfig, name: str) -> Optimizer:
    """Build a class of torch.optim, with the settings that its constructor accepts."""
    make = getattr(torch.optim, name, None)
    if make is None:
        raise ConfigError(
            f"PyTorch {torch.__version__} has no torch.optim.{name}",
            where="--train.optimizer",
            cure="install a newer PyTorch, or choose another optimizer",
        )
    settings = {
        "lr": config.learning_rate,
        "betas": (config.beta1, config.beta2),
        "momentum": config.momentum,
    }
    known = inspect.signature(make).parameters
    try:
        groups = parameter_groups(model, config.weight_decay, config.decay)
        if "weight_decay" not in known:
            groups = [{"params": group["params"]} for group in groups]
        return _named(make(groups, **{key: value for key, value in settings.items() if key in known}), model)
    except ValueError as error:
        raise ConfigError(
            f"torch.optim.{name} rejects the model or the settings: {error}",
            where="--train.optimizer",
            cure="choose another optimizer",
        ) from None


def _named(optimizer: Optimizer, model: nn.Module) -> Optimizer:
    """Add the parameters' names and the peak learning rate to an optimizer's groups."""
    names = {id(p): name for name, p in model.named_parameters()}
    for group in optimizer.param_groups:
        group["param_names"] = [names[id(p)] for p in group["params"]]
        group.setdefault("initial_lr", group["lr"])
    return optimizer


def set_lr_scale(optimizer: Optimizer, scale: float) -> None:
    """Set the learning rate of each group to `scale` times its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * scale


def gradients_of(optimizer: Optimizer) -> list[Tensor]:
    """Return the gradients that the next step applies, in as few tensors as possible; they may be changed in place."""
    own = getattr(optimizer, "gradients", None)
    if own is not None:
        return own()  # type: ignore[no-any-return]
    return [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


def all_reduce_gradients(optimizer: Optimizer, group: ProcessGroup) -> None:
    """Replace the gradients by their sums over the ranks; sparse gradients become dense."""
    for one in optimizer.param_groups:
        for p in one["params"]:
            if p.grad is not None and p.grad.is_sparse:
                p.grad = p.grad.to_dense()
    group.all_reduce(*gradients_of(optimizer))


class CombinedOptimizer:
    """Several optimizers of separate parameters, used as one.

    Attributes:
        parts: the optimizers.
        param_groups: the groups of all parts, in order; the same dictionary objects.
    """

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        """Store the parts and collect their groups."""
        self.parts = parts
        self.param_groups = [group for part in parts for group in part.param_groups]

    def zero_grad(self) -> None:
        """Reset the gradients."""
        for part in self.parts:
            part.zero_grad()

    def gradients(self) -> list[Tensor]:
        """Return the gradients of all parts; they may be changed in place."""
        return [gradient for part in self.parts for gradient in gradients_of(part)]

    def step(self) -> None:
        """Apply the gradients."""
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of all parts, in torch's format."""
        state: dict[int, Any] = {}
        start = 0
        for part in self.parts:
            state |= {start + number: memory for number, memory in part.state_dict()["state"].items()}
            start += _count(part)
        return {"state": state, "param_groups": packed_groups(self.param_groups)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; clears the previous one.

        Raises:
            ValueError: a tensor does not match a parameter.
        """
        start, groups = 0, list(state_dict["param_groups"])
        for part in self.parts:
            end, own = start + _count(part), len(part.param_groups)
            state = {number - start: memory for number, memory in state_dict["state"].items() if start <= number < end}
            part.load_state_dict({"state": state, "param_groups": packed_groups(groups[:own])})
            start, groups = end, groups[own:]


def _count(optimizer: Optimizer) -> int:
    """Count the parameters of an optimizer."""
    return sum(len(group["params"]) for group in optimizer.param_groups)
