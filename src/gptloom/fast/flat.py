"""Parameters in one flat buffer and gradients in another, and the base class of the optimizers that use them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Named = Sequence[tuple[str, nn.Parameter]]


class Flat:
    """Flat buffers for parameters and gradients. The parameters become views of the buffer.

    A small model has dozens of small tensors. On a CPU, their number determines the cost of an update. With flat
    buffers, the update, the gradient norm and zeroing the gradients are one operation each.

    Args:
        named: names and parameters, on their final device and with their final dtype. Moving a parameter later breaks
            the view.
    """

    def __init__(self, named: Named) -> None:
        """Move the parameters and their gradients into the buffers."""
        self.whole = torch.cat([p.detach().flatten() for _, p in named])
        self.grad = torch.zeros_like(self.whole)
        self.places: dict[str, tuple[slice, torch.Size]] = {}
        self._views: list[tuple[nn.Parameter, Tensor]] = []
        start = 0
        for name, p in named:
            place = slice(start, start := start + p.numel())
            p.data = self.whole[place].view_as(p)
            self.places[name] = place, p.shape
            self._views.append((p, self.grad[place].view_as(p)))
        self.zero()

    def zero(self) -> None:
        """Set all gradients to zero, and make each a view of the buffer."""
        self.grad.zero_()
        for parameter, view in self._views:
            if parameter.grad is not view:
                parameter.grad = view

    def gather(self) -> None:
        """Copy replaced gradients into the buffer, and make them views again.

        `nn.Module.zero_grad` sets gradients to None; the next backward pass then creates new tensors.
        """
        for parameter, view in self._views:
            if parameter.grad is not view:
                view.copy_(parameter.grad) if parameter.grad is not None else view.zero_()
                parameter.grad = view

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters in the buffer, in order."""
        return [parameter for parameter, _ in self._views]

    def split(self, memory: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """Split optimizer state into one dict per parameter: views of flat tensors; scalars are shared."""
        return [
            {kind: value if value.ndim == 0 else value[place].view(shape) for kind, value in memory.items()}
            for place, shape in self.places.values()
        ]

    def fill(self, buffer: Tensor, name: str, values: Tensor) -> None:
        """Write the values of parameter `name` to its place in a flat tensor."""
        buffer[self.places[name][0]] = values.flatten().to(buffer)


class FlatOptimizer:
    """Base class of optimizers on flat buffers. It has the interface of `torch.optim.Optimizer` without inheriting it.

    Args:
        flats: the buffers, one per group.
        groups: the settings of each group: "lr", "weight_decay" and those of the subclass.

    Attributes:
        param_groups: the groups, with "params", "param_names" and "initial_lr" (the peak learning rate).
        memory: optimizer state of each group: tensors by kind, flat or scalar.
        kinds: allowed kinds of tensors in `memory`.
    """

    kinds: tuple[str, ...] = ()

    def __init__(self, flats: list[Flat], groups: Sequence[Mapping[str, Any]]) -> None:
        """Start at the peak learning rate, with empty state."""
        self.flats = flats
        self.param_groups = [
            {"params": flat.parameters, "param_names": list(flat.places), "initial_lr": group["lr"], **group}
            for flat, group in zip(flats, groups, strict=True)
        ]
        self.memory = self.empty_memory()

    def empty_memory(self) -> list[dict[str, Tensor]]:
        """Return the optimizer state before the first step."""
        return [{} for _ in self.flats]

    def zero_grad(self) -> None:
        """Set all gradients to zero. They stay views of the buffers and are never None."""
        for flat in self.flats:
            flat.zero()

    def gradients(self) -> list[Tensor]:
        """Return the flat gradients, one tensor per buffer. They may be changed in place."""
        for flat in self.flats:
            flat.gather()
        return [flat.grad for flat in self.flats]

    def state_dict(self) -> dict[str, Any]:
        """Return the state in PyTorch's format, with parameters as numbers; tensors are views of the buffers."""
        parts = [part for flat, memory in zip(self.flats, self.memory, strict=True) for part in flat.split(memory)]
        state = {number: part for number, part in enumerate(parts) if part}
        return {"state": state, "param_groups": packed_groups(self.param_groups)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load state; clears the previous state.

        Raises:
            ValueError: a tensor has an unknown kind or a wrong shape.
        """
        homes = [(place, name) for place, flat in enumerate(self.flats) for name in flat.places]
        found = self.empty_memory()
        for number, part in state_dict["state"].items():
            place, name = homes[number]
            flat, memory = self.flats[place], found[place]
            for kind, tensor in part.items():
                if kind not in self.kinds or (kind != "step" and tensor.shape != flat.places[name][1]):
                    raise unfit(f"{kind}/{name}")
                if kind == "step":
                    memory[kind] = tensor.to(flat.whole.device, copy=True)
                else:
                    flat.fill(memory.setdefault(kind, torch.zeros_like(flat.grad)), name, tensor)
        self.memory = found
        load_groups(self.param_groups, state_dict["param_groups"])


def packed_groups(groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return parameter groups as in a `state_dict`: with numbers in place of the parameters."""
    start, packed = 0, []
    for group in groups:
        packed.append({**group, "params": list(range(start, start := start + len(group["params"])))})
    return packed


def load_groups(groups: Sequence[dict[str, Any]], packed: Sequence[Mapping[str, Any]]) -> None:
    """Load the settings of packed groups.

    Raises:
        ValueError: the number of groups or of parameters in a group differs.
    """
    for group, saved in zip(groups, packed, strict=True):
        if len(group["params"]) != len(saved["params"]):
            raise ValueError("the optimizer's groups have a different number of parameters than the saved ones")
        group.update({key: value for key, value in saved.items() if key != "params"})


def unfit(key: str) -> ValueError:
    """Return the error for optimizer state (KIND/NAME) that does not match the model."""
    return ValueError(f"the optimizer state {key} does not match any parameter of this model")
