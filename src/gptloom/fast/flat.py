"""Parameters laid side by side in one buffer, and their gradients in another."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gptloom.training.interfaces import Optimizer, Ranks

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


class FlatOptimizer(Optimizer):
    """What optimizers share whose parameters lie in buffers.

    Args:
        flats: the buffers.
        peak: the peak learning rate.
        ranks: who else trains.
    """

    def __init__(self, flats: list[Flat], peak: float, ranks: Ranks) -> None:
        """Begin at the peak."""
        self.flats, self.peak, self.rate, self.ranks = flats, peak, peak, ranks

    def set_rate(self, share: float) -> None:
        """See `Optimizer.set_rate`."""
        self.rate = self.peak * share

    def zero_grad(self) -> None:
        """Zero the buffers; gradients stay views of them, so that they are never None."""
        for flat in self.flats:
            flat.zero()

    def gradients(self) -> list[Tensor]:
        """See `Optimizer.gradients`."""
        for flat in self.flats:
            flat.gather()
        return [flat.grad for flat in self.flats]

    def reduce(self) -> None:
        """See `Optimizer.reduce`."""
        self.ranks.add(*self.gradients())


def unfit(key: str) -> ValueError:
    """What of an optimizer's memory does not belong to the model."""
    return ValueError(f"the optimizer's {key} fits no parameter of this model")
