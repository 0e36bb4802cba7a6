"""Limits of a machine: `Products` records the matrix products of a step; `Multiplier` and `Memory` time the machine.

`Multiplier` measures matrix products of given shapes, and `Memory` the memory bandwidth.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from gptloom.devices import threads
from gptloom.studies.bench.timing import Budget, repeat

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
