"""An optimizer's memory as named tensors, which is how optimizer.safetensors holds it."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from gptloom.fast.flat import unfit


@runtime_checkable
class Optimizer(Protocol):
    """What gptloom asks of an optimizer: the part of `torch.optim.Optimizer` that training needs.

    gptloom's own optimizers answer to it without being a `torch.optim.Optimizer`, because to construct one loads
    PyTorch's compiler and SymPy, most of a second before the first step.

    Attributes:
        param_groups: dictionaries with "params" (parameters), "param_names" (their names in the model), "lr" and
            "weight_decay".
    """

    param_groups: list[dict[str, Any]]

    def state_dict(self) -> dict[str, Any]:
        """The memory: {"state": {number: {kind: value}}, "param_groups": [...]}, numbered in the groups' order."""

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Put such a memory back, and forget everything else."""

    def step(self) -> Any:
        """Apply the gradients."""

    def zero_grad(self) -> None:
        """Begin a new sum of gradients."""


def parameter_names(optimizer: Optimizer) -> list[str]:
    """The names of an optimizer's parameters in the order in which its state numbers them."""
    return [name for group in optimizer.param_groups for name in group["param_names"]]


def state_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """Copies of an optimizer's memory in the CPU's memory, as KIND/NAME, such as "exp_avg/head.weight"."""
    names = parameter_names(optimizer)
    return {
        f"{kind}/{names[number]}": torch.as_tensor(value).to("cpu", copy=True).contiguous()
        for number, memory in optimizer.state_dict()["state"].items()
        for kind, value in memory.items()
        if value is not None
    }


def load_state_tensors(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put what `state_tensors` gave back into an optimizer for the same parameters, and nothing else.

    Raises:
        ValueError: a tensor belongs to no parameter of the optimizer, or has another shape.
    """
    numbers = {name: number for number, name in enumerate(parameter_names(optimizer))}
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        kind, _, name = key.partition("/")
        if name not in numbers:
            raise unfit(key)
        state.setdefault(numbers[name], {})[kind] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
