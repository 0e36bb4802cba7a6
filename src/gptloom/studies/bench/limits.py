"""Clocks, budgets, and times with their spread.

Limits of a machine: `Products` records the matrix products of a step; `Multiplier` and `Memory` time the machine.

`Multiplier` measures matrix products of given shapes, and `Memory` the memory bandwidth.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from gptloom.devices import threads

Clock = Callable[[], float]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Spread:
    """Statistics of repeated measurements, in seconds.

    Attributes:
        median: the median.
        low: the first quartile.
        high: the third quartile.
        best: the minimum.
        repeats: the number of measurements.
    """

    median: float
    low: float
    high: float
    best: float
    repeats: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Spread":
        """The statistics of one or more times."""
        low, median, high = np.quantile(seconds, (0.25, 0.5, 0.75)).tolist()
        return cls(median, low, high, min(seconds), len(seconds))


class Budget:
    """A time budget. Shares are taken of the time that is left, so unused time goes to later shares."""

    def __init__(self, seconds: float | int, clock: Clock = time.perf_counter) -> None:
        """Start the budget now."""
        self.clock, self.seconds = clock, seconds
        self.end = clock() + seconds

    @property
    def left(self) -> float:
        """Seconds that are left, at least 0."""
        return max(0.0, self.end - self.clock())

    @property
    def over(self) -> float:
        """Seconds that have been spent beyond the budget, at least 0."""
        return max(0.0, self.clock() - self.end)

    def again(self) -> "Budget":
        """A budget of the same length that starts now."""
        return self.of(self.seconds)

    def part(self, share: float | int) -> "Budget":
        """A budget that starts now, with this share of the time that is left."""
        return self.of(self.left * share)

    def of(self, seconds: float | int) -> "Budget":
        """A budget of `seconds` that starts now, with the same clock."""
        return Budget(seconds, self.clock)


def wait(device: torch.device) -> None:
    """Wait until the device has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def repeat(
    action: Callable[[], object], device: torch.device, budget: Budget, *, least: int = 3, most: int = 1000
) -> list[float]:
    """Call a function repeatedly; return the seconds of each call.

    It is called at least once and at most `most` times, and fewer than `least` times only if the budget is used up.
    """
    found: list[float] = []
    while len(found) < most and (not found or budget.left > (found[-1] if len(found) >= least else 0.0)):
        wait(device)
        start = budget.clock()
        action()
        wait(device)
        found.append(budget.clock() - start)
    return found


def exponent(values: Sequence[float | int], seconds: Sequence[float | int]) -> float | None:
    """The exponent p of the best fit seconds = a * value ** p, by least squares of the logarithms.

    None for fewer than two values.
    """
    if len(set(values)) < 2:
        return None
    slope, _ = np.polyfit(np.log(values), np.log(seconds), 1)
    return float(slope)


def ending_exponent(values: Sequence[float | int], seconds: Sequence[float | int]) -> float | None:
    """The exponent between the two largest values, where the growth matters most; None for fewer than two values."""
    last = sorted(zip(values, seconds, strict=True))[-2:]
    return exponent(*zip(*last, strict=True)) if len(last) == 2 else None


TILE = 256, 512
"""Approximate numbers of queries and keys in a tile of a fused attention kernel; scores of a tile stay in the cache."""


class Product(NamedTuple):
    """`batch` products of an (m, k) with a (k, n) matrix; `causal` products need only half of the result."""

    batch: int
    m: int
    k: int
    n: int
    causal: bool = False

    @property
    def operations(self) -> int:
        """Multiplications and additions of the whole result."""
        return 2 * self.batch * self.m * self.k * self.n


class Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A context that counts the matrix products of linear layers, attention, recurrent layers and the optimizer.

    Fused attention is counted as products of tiles. Recomputation in its backward pass is not counted.

    Attributes:
        found: the number of times that each product occurred.
    """

    def __init__(self) -> None:
        """Start with no products."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: Counter[Product] = Counter()

    @property
    def operations(self) -> int:
        """Operations of all products together."""
        return sum(product.operations * times for product, times in self.found.items())

    def __torch_dispatch__(self, func: OpOverload, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count an operation, and run it."""
        given = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | (kwargs or {})
        self._look(
            str(func).split(".")[1], [arg for arg in args if isinstance(arg, Tensor)], bool(given.get("is_causal"))
        )
        return func(*args, **(kwargs or {}))

    def _look(self, name: str, tensors: list[Tensor], causal: bool) -> None:
        if name.rstrip("_") in ("mm", "bmm", "addmm", "baddbmm"):
            left, right = tensors[-2:]
            self.found[
                Product(left.shape[0] if left.ndim == 3 else 1, left.shape[-2], left.shape[-1], right.shape[-1])
            ] += 1
        elif name.startswith("_scaled_dot_product") and "attention" in name:
            self._attention(tensors[1:4] if "backward" in name else tensors[:3], causal, backward="backward" in name)
        elif name == "mkldnn_rnn_layer":
            self._recurrent(*tensors[:3])

    def _attention(self, parts: list[Tensor], causal: bool, *, backward: bool) -> None:
        """Count scores and weighted sums; in the backward pass, gradients of weights, values, queries and keys."""
        query, key, value = parts
        d, e = query.shape[-1], value.shape[-1]
        t, s = (_divisor(x.shape[-2], most) for x, most in zip((query, key), TILE, strict=True))
        b = query.shape[0] * query.shape[1] * (query.shape[-2] // t) * (key.shape[-2] // s)
        forth, back = [(t, d, s), (t, s, e)], [(t, e, s), (s, t, e), (t, s, d), (s, t, d)]
        self.found.update(Product(b, *shape, causal) for shape in (back if backward else forth))

    def _recurrent(self, x: Tensor, into: Tensor, over: Tensor) -> None:
        """Count the products of a recurrent layer, and those of its backward pass, which PyTorch does not dispatch.

        The inputs' products and the weights' gradients take all steps at once; the states' products take one step each.
        """
        time, b, c = x.shape
        gates, width = over.shape
        at_once = [(time * b, c, gates), (time * b, gates, c), (gates, time * b, c), (gates, time * b, width)]
        self.found.update(Product(1, *shape) for shape in at_once)
        self.found.update({Product(1, b, width, gates): time, Product(1, b, gates, width): time})


def _divisor(number: int, most: int) -> int:
    """The largest divisor of `number` that is at most `most`."""
    return next(divisor for divisor in range(min(number, most), 0, -1) if number % divisor == 0)


Way = tuple[bool, bool]
"""Whether the left and the right matrix are stored transposed."""

_NEAR, _FILLING = 1 << 18, 1 << 26
"""Numbers that fit into a CPU's caches, and numbers that suffice to keep a GPU busy."""


class Multiplier:
    """Times matrix products in every memory layout; the fastest layout counts. Each product is timed once."""

    def __init__(self, device: torch.device) -> None:
        """Start with no times."""
        self.device = device
        self.known: dict[tuple[Product, torch.dtype, int], float] = {}

    def seconds(self, products: Mapping[Product, int], dtype: torch.dtype, budget: Budget) -> float:
        """Seconds of all these products, one after another, with the current number of threads.

        Known products are not timed again.
        """
        total, count = 0.0, torch.get_num_threads()
        for number, (product, times) in enumerate(products.items()):
            key = product, dtype, count
            if key not in self.known:
                self.known[key] = self._best(product, dtype, budget.part(1 / (len(products) - number)))
            total += times * self.known[key] * (0.5 if product.causal else 1.0)
        return total

    def _best(self, product: Product, dtype: torch.dtype, budget: Budget) -> float:
        """Time one product; of many small ones, only as many as fit into the cache, for a kernel would do the same."""
        room = (_NEAR if self.device.type == "cpu" else _FILLING) // max(
            1, product.m * product.n + product.k * (product.m + product.n)
        )
        batch = min(product.batch, max(room, torch.get_num_threads()))
        return self._tried(product._replace(batch=batch), dtype, budget) * product.batch / batch

    def _tried(self, product: Product, dtype: torch.dtype, budget: Budget) -> float:
        ways: list[Way] = [(left, right) for left in (False, True) for right in (False, True)]
        return min(
            min(repeat(self._action(product, dtype, way), self.device, budget.part(1 / (len(ways) - n)), most=20))
            for n, way in enumerate(ways)
        )

    def _action(self, product: Product, dtype: torch.dtype, way: Way) -> Callable[[], object]:
        batch, m, k, n, _ = product
        left, right = self._matrix(batch, m, k, dtype, way[0]), self._matrix(batch, k, n, dtype, way[1])
        out = torch.empty((batch, m, n), dtype=dtype, device=self.device)
        if batch == 1:
            left, right, out = left[0], right[0], out[0]
            return lambda: torch.mm(left, right, out=out)
        return lambda: torch.bmm(left, right, out=out)

    def _matrix(self, batch: int, rows: int, columns: int, dtype: torch.dtype, turned: bool) -> Tensor:
        shape = (batch, columns, rows) if turned else (batch, rows, columns)
        drawn = torch.empty(shape, dtype=dtype, device=self.device).uniform_(-1.0, 1.0)
        return drawn.transpose(-2, -1) if turned else drawn


def square(device: torch.device) -> Product:
    """A product that is large enough to reach a device's highest rate."""
    side = 8192 if device.type == "cuda" else 2048 if device.type == "mps" else 1024
    return Product(1, side, side, side)


class Memory:
    """Times the rate at which a device reads its memory."""

    def __init__(self, device: torch.device) -> None:
        """Start with no rates."""
        self.device = device
        self.known: list[tuple[int, int, float]] = []

    def rate(self, size: int, count: int, budget: Budget) -> float:
        """The highest rate, in bytes per second, at which `count` threads read a buffer of `size` bytes.

        The buffer is summed, multiplied with a vector, and copied, several times each, so a small buffer is read from
        the cache. The rate is at least that of larger buffers that were measured before.
        """
        self.known.append((size, count, self._best(size, count, budget)))
        return max(rate for longer, threads, rate in self.known if longer >= size and threads == count)

    def _best(self, size: int, count: int, budget: Budget) -> float:
        width = 1024
        numbers = torch.ones(max(1, size // (4 * width)), width, device=self.device)
        vector, other = torch.ones(width, device=self.device), torch.empty_like(numbers)
        moved = numbers.numel() * 4
        ways: list[tuple[int, Callable[[], object]]] = [
            (1, numbers.sum),
            (1, lambda: torch.mv(numbers, vector)),
            (2, lambda: other.copy_(numbers)),
        ]
        with threads(count):
            found = [
                times * moved / min(repeat(way, self.device, budget.part(1 / (len(ways) - n))))
                for n, (times, way) in enumerate(ways)
            ]
        return max(found)
