"""Which matrix products a step is made of, seen as they happen."""

from collections import Counter
from typing import Any, NamedTuple

from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

TILE = 256, 512
"""Queries and keys that a fused attention kernel has in its hands at once, about; their scores never reach the memory."""


class Product(NamedTuple):
    """`batch` products of an (m, k) matrix with a (k, n) one; of `causal` ones, half of the result is not needed."""

    batch: int
    m: int
    k: int
    n: int
    causal: bool = False

    @property
    def operations(self) -> int:
        """Multiplications and additions, of all of the result."""
        return 2 * self.batch * self.m * self.k * self.n


class Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the products while it holds: those of linear layers, attention, recurrent layers, and the optimizer.

    Fused attention is counted as products of tiles. What it computes again in its backward pass is its own choice, and not counted.

    Attributes:
        found: how often each product occurred.
    """

    def __init__(self) -> None:
        """Nothing has been seen yet."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: Counter[Product] = Counter()

    @property
    def operations(self) -> int:
        """Of all of them together."""
        return sum(product.operations * times for product, times in self.found.items())

    def __torch_dispatch__(self, func: OpOverload, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look at an operation, and let it happen."""
        given = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | (kwargs or {})
        self._look(str(func).split(".")[1], [arg for arg in args if isinstance(arg, Tensor)], bool(given.get("is_causal")))
        return func(*args, **(kwargs or {}))

    def _look(self, name: str, tensors: list[Tensor], causal: bool) -> None:
        if name.rstrip("_") in ("mm", "bmm", "addmm", "baddbmm"):
            left, right = tensors[-2:]
            self.found[Product(left.shape[0] if left.ndim == 3 else 1, left.shape[-2], left.shape[-1], right.shape[-1])] += 1
        elif name.startswith("_scaled_dot_product") and "attention" in name:
            self._attention(tensors[1:4] if "backward" in name else tensors[:3], causal, backward="backward" in name)
        elif name == "mkldnn_rnn_layer":
            self._recurrent(*tensors[:3])

    def _attention(self, parts: list[Tensor], causal: bool, *, backward: bool) -> None:
        """Scores and sums; backward, the gradients of the weights, values, queries and keys."""
        query, key, value = parts
        d, e = query.shape[-1], value.shape[-1]
        t, s = (_divisor(x.shape[-2], most) for x, most in zip((query, key), TILE, strict=True))
        b = query.shape[0] * query.shape[1] * (query.shape[-2] // t) * (key.shape[-2] // s)
        forth, back = [(t, d, s), (t, s, e)], [(t, e, s), (s, t, e), (t, s, d), (s, t, d)]
        self.found.update(Product(b, *shape, causal) for shape in (back if backward else forth))

    def _recurrent(self, x: Tensor, into: Tensor, over: Tensor) -> None:
        """All inputs at once, then step by step; and the backward pass, which PyTorch's kernel does unseen, the weights' gradients at once."""
        time, b, c = x.shape
        gates, width = over.shape
        at_once = [(time * b, c, gates), (time * b, gates, c), (gates, time * b, c), (gates, time * b, width)]
        self.found.update(Product(1, *shape) for shape in at_once)
        self.found.update({Product(1, b, width, gates): time, Product(1, b, gates, width): time})


def _divisor(number: int, most: int) -> int:
    """The largest divisor that is at most this."""
    return next(divisor for divisor in range(min(number, most), 0, -1) if number % divisor == 0)
