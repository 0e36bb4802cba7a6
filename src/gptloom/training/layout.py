"""Parameters laid side by side in one buffer, and their gradients in another."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

Named = Sequence[tuple[str, nn.Parameter]]


class Flat:
    """One flat parameter, of which some of the model's parameters become views.

    A small model has dozens of small tensors, and on a CPU it is their number that costs: laid out like this, an update, a
    gradient's norm and its zeroing are one operation each.

    Args:
        named: parameters by name, on their device and in their type; moving them later would cut the views off.
    """

    def __init__(self, named: Named) -> None:
        """Move the parameters and their gradients into the buffers."""
        self.whole = nn.Parameter(torch.cat([p.detach().flatten() for _, p in named]))
        self.grad = torch.zeros_like(self.whole)
        self.whole.grad = self.grad
        self.places: dict[str, tuple[slice, torch.Size]] = {}
        self._views: list[tuple[nn.Parameter, Tensor]] = []
        start = 0
        for name, p in named:
            place = slice(start, start := start + p.numel())
            p.data = self.whole.data[place].view_as(p)
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
        """Bring gradients back that others have replaced (`nn.Module.zero_grad` sets them to None, and backward makes new ones)."""
        for parameter, view in self._views:
            if parameter.grad is not view:
                view.copy_(parameter.grad) if parameter.grad is not None else view.zero_()
                parameter.grad = view

    def split(self, buffer: Tensor) -> dict[str, Tensor]:
        """Copies of a buffer's parts by parameter, in the CPU's memory."""
        return {name: buffer[place].view(shape).to("cpu", copy=True) for name, (place, shape) in self.places.items()}

    def fill(self, buffer: Tensor, key: str, values: Tensor) -> None:
        """Put one parameter's part back into a buffer; `key` is KIND/NAME.

        Raises:
            ValueError: there is no such parameter, or it has another shape.
        """
        place, shape = self.places.get(key.partition("/")[2], (slice(0), None))
        if values.shape != shape:
            raise unfit(key)
        buffer[place] = values.flatten().to(buffer)


def unfit(key: str) -> ValueError:
    """What of an optimizer's memory does not belong to the model."""
    return ValueError(f"the optimizer's {key} fits no parameter of this model")
