"""Which matrix products a step is made of, seen as they happen: on a real step, or on an outline's."""

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gptloom.config import ModelConfig
from gptloom.model.outlined import prepare_outline, run_outline


class Product(NamedTuple):
    """`batch` products of an (m, k) matrix with a (k, n) one."""

    batch: int
    m: int
    k: int
    n: int

    @property
    def operations(self) -> int:
        """Multiplications and additions."""
        return 2 * self.batch * self.m * self.k * self.n


class Products(TorchDispatchMode):
    """Counts the products while it holds: those of linear layers, attention (all of its places), recurrent layers, and the optimizer.

    What attention computes again in its backward pass is not counted, for it is a choice of the kernel.

    Attributes:
        found: how often each product occurred.
    """

    def __init__(self) -> None:
        """Nothing has been seen yet."""
        super().__init__()
        self.found: Counter[Product] = Counter()

    @property
    def operations(self) -> int:
        """Of all of them together."""
        return sum(product.operations * times for product, times in self.found.items())

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look at an operation, and let it happen."""
        self._look(str(func).split(".")[1], [arg for arg in args if isinstance(arg, Tensor)])
        return func(*args, **(kwargs or {}))

    def _look(self, name: str, tensors: list[Tensor]) -> None:
        if name in ("mm", "bmm", "addmm", "baddbmm"):
            left, right = tensors[-2:]
            self.found[Product(left.shape[0] if left.ndim == 3 else 1, left.shape[-2], left.shape[-1], right.shape[-1])] += 1
        elif name.startswith("_scaled_dot_product") and "attention" in name:
            self._attention(tensors[1:4] if "backward" in name else tensors[:3], backward="backward" in name)
        elif name == "mkldnn_rnn_layer":
            self._recurrent(*tensors[:3])

    def _attention(self, parts: list[Tensor], *, backward: bool) -> None:
        """Scores and sums; backward, the gradients of the weights, values, queries and keys."""
        query, key, value = parts
        b, h, t, d = query.shape
        s, e = key.shape[-2], value.shape[-1]
        forth = [Product(b * h, t, d, s), Product(b * h, t, s, e)]
        back = [Product(b * h, t, e, s), Product(b * h, s, t, e), Product(b * h, t, s, d), Product(b * h, s, t, d)]
        self.found.update(back if backward else forth)

    def _recurrent(self, x: Tensor, into: Tensor, over: Tensor) -> None:
        """All inputs at once and then step by step; backward twice each, which PyTorch's kernel does unseen."""
        time, b, c = x.shape
        gates, width = over.shape
        self.found.update({Product(1, time * b, c, gates): 3, Product(1, b, width, gates): 3 * time})


def outline_products(config: ModelConfig, rows: int, time: int | None = None) -> Counter[Product]:
    """The products of a forward and backward pass over `rows` sequences of `time` tokens (default: block_size)."""
    products = Products()
    run_outline(prepare_outline(config), rows, time or config.block_size, products)
    return products.found
