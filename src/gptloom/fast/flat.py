"""Parameters laid side by side in one buffer, and their gradients in another."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Named = Sequence[tuple[str, nn.Parameter]]


class Flat:
    """One flat tensor, of which some of the model's parameters become views.

    A small model has dozens of small tensors, and on a CPU it is their number that costs: laid out like this, an
    update, a gradient's norm and its zeroing are one operation each.

    Args:
        named: parameters by name, on their device and in their type; moving them later would cut the views off.
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
        """Zero the gradients, and see to it that each is a view of the buffer."""
        self.grad.zero_()
        for parameter, view in self._views:
            if parameter.grad is not view:
                parameter.grad = view

    def gather(self) -> None:
        """Bring gradients back that others have replaced.

        `nn.Module.zero_grad` sets them to None, and a backward pass then makes new ones.
        """
        for parameter, view in self._views:
            if parameter.grad is not view:
                view.copy_(parameter.grad) if parameter.grad is not None else view.zero_()
                parameter.grad = view

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters that lie in the buffer, in order."""
        return [parameter for parameter, _ in self._views]

    def split(self, memory: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """The part of each parameter in tensors by kind: views of those as long as the buffer, and the scalars."""
        return [
            {kind: value if value.ndim == 0 else value[place].view(shape) for kind, value in memory.items()}
            for place, shape in self.places.values()
        ]

    def fill(self, buffer: Tensor, name: str, values: Tensor) -> None:
        """Put the part of the parameter `name` back into a tensor as long as the buffer."""
        buffer[self.places[name][0]] = values.flatten().to(buffer)


class FlatOptimizer:
    """What the optimizers share whose parameters lie in buffers. They answer to torch's protocol by duck typing.

    Args:
        flats: the buffers, one a group.
        groups: the settings of each group: "lr", "weight_decay" and what the kind of optimizer needs besides.

    Attributes:
        param_groups: the groups, with "params", "param_names" and "initial_lr", the peak learning rate.
        memory: what the optimizer remembers of each group: tensors by kind, each as long as the buffer or a scalar.
        kinds: the kinds of tensors that may be remembered.
    """

    kinds: tuple[str, ...] = ()

    def __init__(self, flats: list[Flat], groups: Sequence[Mapping[str, Any]]) -> None:
        """Begin at the peak learning rate, with an empty memory."""
        self.flats = flats
        self.param_groups = [
            {"params": flat.parameters, "param_names": list(flat.places), "initial_lr": group["lr"], **group}
            for flat, group in zip(flats, groups, strict=True)
        ]
        self.memory = self.empty_memory()

    def empty_memory(self) -> list[dict[str, Tensor]]:
        """The memory before the first step."""
        return [{} for _ in self.flats]

    def zero_grad(self) -> None:
        """Zero the buffers; gradients stay views of them, so that they are never None."""
        for flat in self.flats:
            flat.zero()

    def gradients(self) -> list[Tensor]:
        """The gradients, one tensor a buffer, which may be changed in place."""
        for flat in self.flats:
            flat.gather()
        return [flat.grad for flat in self.flats]

    def state_dict(self) -> dict[str, Any]:
        """The memory in torch's form, a parameter a number; the tensors are views of the buffers."""
        parts = [part for flat, memory in zip(self.flats, self.memory, strict=True) for part in flat.split(memory)]
        state = {number: part for number, part in enumerate(parts) if part}
        return {"state": state, "param_groups": packed_groups(self.param_groups)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put a memory back, and forget everything else.

        Raises:
            ValueError: a tensor is of a kind that this optimizer does not remember, or has another shape.
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
    """Parameter groups as a state_dict holds them: with the parameters' numbers in place of the parameters."""
    start, packed = 0, []
    for group in groups:
        packed.append({**group, "params": list(range(start, start := start + len(group["params"])))})
    return packed


def load_groups(groups: Sequence[dict[str, Any]], packed: Sequence[Mapping[str, Any]]) -> None:
    """Put the settings of packed groups back.

    Raises:
        ValueError: there are more or fewer groups, or they hold more or fewer parameters.
    """
    for group, saved in zip(groups, packed, strict=True):
        if len(group["params"]) != len(saved["params"]):
            raise ValueError("the optimizer's groups hold other parameters than the saved ones")
        group.update({key: value for key, value in saved.items() if key != "params"})


def unfit(key: str) -> ValueError:
    """The error for a part of an optimizer's memory, KIND/NAME, that does not belong to the model."""
    return ValueError(f"the optimizer's {key} fits no parameter of this model")
