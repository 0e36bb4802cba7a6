"""`ArrayKit`: decoder operations on NumPy arrays (c,), for one token of one row on a CPU.

On arrays of this size, a NumPy operation takes a third of the time of a PyTorch operation. Every function writes its
result to a preallocated array, which is valid until the next call. Arrays share memory with the weights and the cache.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from gptloom.fast.int8 import DIGITS, HALVES, LARGEST, SMALLEST, Int8Linear
from gptloom.fast.ops import Kit, Unknown
from gptloom.model.attention import Attention
from gptloom.model.cache import LayerCache
from gptloom.model.layers import MLP, CausalMean
from gptloom.model.ngram import ngram_rows_at
from gptloom.model.transformer import Decoder

Array = npt.NDArray[np.float32]
Map = Callable[[Array], Array]


def layer_norm(layer: nn.LayerNorm) -> Map:
    """Return the function of an `nn.LayerNorm`."""
    width, gain, bias = (
        layer.weight.numel(),
        as_array(layer.weight),
        None if layer.bias is None else as_array(layer.bias),
    )
    out, shift, rate = np.empty(width, np.float32), np.empty((), np.float32), np.empty((), np.float32)
    mean, square = np.full(width, 1 / width, np.float32).dot, out.dot
    subtract, multiply, add, root, of_width, least = (
        np.subtract,
        np.multiply,
        np.add,
        math.sqrt,
        math.sqrt(width),
        width * layer.eps,
    )

    def apply(x: Array) -> Array:
        mean(x, shift)
        subtract(x, shift, out)
        rate[()] = of_width / root(square(out) + least)  # 1 / root(variance + eps)
        multiply(out, rate, out)
        multiply(out, gain, out)
        return out if bias is None else add(out, bias, out)

    return apply


def rms_norm(layer: nn.RMSNorm) -> Map:
    """Return the function of an `nn.RMSNorm`."""
    width, gain = layer.weight.numel(), as_array(layer.weight)
    out, rate, multiply, root = np.empty(width, np.float32), np.empty((), np.float32), np.multiply, math.sqrt
    of_width, least = math.sqrt(width), width * epsilon(layer)

    def apply(x: Array) -> Array:
        rate[()] = of_width / root(x.dot(x) + least)  # 1 / root(mean square + eps)
        return multiply(multiply(x, rate, out), gain, out)

    return apply


def normalise_rows(x: Array, gains: Array, eps: float) -> Callable[[int], object]:
    """Return a function that applies RMSNorm to each row of `x` in place; it ignores its argument."""
    rows, width = x.shape
    squares = np.empty((rows, 1, 1), np.float32)
    lying, standing, roots = x[:, None, :], x[:, :, None], squares.reshape(rows, 1)
    part, least = np.array(1 / width, np.float32), np.array(eps, np.float32)
    matmul, multiply, add, root, divide = np.matmul, np.multiply, np.add, np.sqrt, np.divide

    def apply(position: int) -> None:
        matmul(lying, standing, squares)
        root(add(multiply(roots, part, roots), least, roots), roots)
        multiply(divide(x, roots, x), gains, x)

    return apply


def activation(kind: str, width: int) -> Map:
    """Return the activation function of an MLP for input size `width`, as in `layers.activate`.

    The function may overwrite its input.
    """
    zero, other, multiply, add, maximum = (
        np.zeros((), np.float32),
        np.empty(width, np.float32),
        np.multiply,
        np.add,
        np.maximum,
    )
    if kind == "relu":
        return lambda x: maximum(x, zero, out=x)
    if kind == "relu2":
        return lambda x: multiply(maximum(x, zero, out=x), x, x)
    with torch.inference_mode(False):  # an inference tensor cannot be written to outside inference mode
        tensor = torch.from_numpy(other)
    if kind == "gelu":  # the formula, because torch.gelu has an overhead of 5 microseconds
        half, one, root = np.array(0.5, np.float32), np.array(1.0, np.float32), np.array(math.sqrt(0.5), np.float32)

        def gelu(x: Array) -> Array:
            multiply(x, root, other)
            torch.erf(tensor, out=tensor)
            add(other, one, other)
            return multiply(multiply(other, half, other), x, x)

        return gelu
    if kind == "gelu-tanh":
        cubic, inner, half, one = (
            np.array(number, np.float32) for number in (0.044715, math.sqrt(2 / math.pi), 0.5, 1.0)
        )

        def gelu_tanh(x: Array) -> Array:
            # sqrt(2 / pi) (x + 0.044715 x^3) = sqrt(2 / pi) x (1 + 0.044715 x^2)
            multiply(multiply(x, x, other), cubic, other)
            multiply(multiply(add(other, one, other), x, other), inner, other)
            add(np.tanh(other, other), one, other)
            return multiply(multiply(other, half, other), x, x)

        return gelu_tanh
    if kind == "swiglu":
        half_width = width // 2
        gate = tensor[:half_width]

        def swiglu(x: Array) -> Array:
            other[:half_width] = x[:half_width]
            torch.sigmoid(gate, out=gate)
            first = x[:half_width]
            return multiply(multiply(first, other[:half_width], first), x[half_width:], first)

        return swiglu
    raise Unknown(kind)


def digit_product(layer: Int8Linear) -> Callable[[Array, Array], Array]:
    """Return `int8.digit_product` for one vector, without bias, for a layer that `takes_digits`.

    The function's arguments are the vector and the output array.
    """
    width, scale, matrix, product = layer.in_features, as_array(layer.scale), layer.numbers.detach().t(), torch._int_mm
    scaled, whole, digits = np.empty(width, np.float32), np.empty(width, np.int32), np.empty((DIGITS, width), np.int8)
    signed, parts = whole.view(np.int8).reshape(width, 4).T[:DIGITS], np.empty((DIGITS, layer.out_features), np.float32)
    with torch.inference_mode(False):  # an inference tensor cannot be written to outside inference mode
        left, sums = torch.from_numpy(digits), torch.empty(parts.shape, dtype=torch.int32)
    found, places, halves = sums.numpy(), np.array((1, 256, 65536), np.float32), np.int32(HALVES)
    absolute, multiply, add, xor, copy = np.abs, np.multiply, np.add, np.bitwise_xor, np.copyto

    def apply(x: Array, out: Array) -> Array:
        largest = max(float(absolute(x, scaled).max()), SMALLEST)
        np.rint(multiply(x, LARGEST / largest, scaled), scaled)
        copy(whole, scaled, casting="unsafe")
        xor(add(whole, halves, whole), halves, whole)
        copy(digits, signed)
        product(left, matrix, out=sums)
        copy(parts, found, casting="unsafe")
        return multiply(multiply(places.dot(parts, out), scale, out), largest / LARGEST, out)

    return apply


def epsilon(layer: nn.RMSNorm) -> float:
    """Return the epsilon of an RMSNorm."""
    if layer.eps is None:
        raise Unknown("RMSNorm without eps")
    return layer.eps


def as_array(tensor: Tensor) -> Array:
    """Return a tensor as an array that shares its memory."""
    return tensor.detach().numpy()


def same(x: Array) -> Array:
    """Identity."""
    return x


LARGE = 400_000
"""Number of weights from which a matrix-vector product is computed row by row (`np.vecdot`).

OpenBLAS would distribute it over threads, which wait for each other up to 10 ms on a busy machine. Row by row is as
fast, because memory bandwidth is the limit.
"""

SMALL = 100_000
"""Number of weights below which an int8 matrix is faster as float32: it fits into the processor's cache anyway."""


class ArrayKit(Kit[Array, int]):
    """Implements `Kit` for one row on a CPU.

    Raises:
        Unknown: the weights are not float32 on a CPU.
    """

    def __init__(self, model: Decoder) -> None:
        """Store the embedding tables."""
        super().__init__()
        table = model.token_table.weight
        if table.device.type != "cpu" or table.dtype != torch.float32:
            raise Unknown(f"{table.dtype} on {table.device}")
        self.take(model.token_table)
        self.table, self.positions, self.rotary = as_array(table), None, None
        if model.position_table is not None:
            self.take(model.position_table)
            self.positions = as_array(model.position_table.weight)
        elif model.config.positions == "sinusoidal":
            self.positions = as_array(model.get_buffer("sinusoids"))
        elif model.config.positions == "rotary":
            cos, sin = as_array(model.get_buffer("rotary"))
            half = sin.shape[1] // 2
            signed = np.concatenate((-sin[:, :half], sin[:, half:]), axis=1).reshape(len(sin), 2, half)
            self.rotary = list(cos), list(signed)
        self.ngrams = None
        if model.ngrams is not None:
            self.take(model.ngrams)
            self.ngrams, self.longest = as_array(model.ngrams.weight), model.ngrams.longest
        self.stream = np.empty(self.table.shape[1], np.float32)
        self.scores = np.empty(model.config.n_head * model.config.block_size, np.float32)
        self.score_views: dict[int, tuple[Array, Tensor]] = {}

    def begin(self, rows: Sequence[Sequence[int]], position: int, slot: LayerCache) -> tuple[Array, int]:
        """See `Kit.begin`."""
        one, x = rows[0][0], self.stream
        if self.positions is None:
            np.copyto(x, self.table[one])
        else:
            np.add(self.table[one], self.positions[position], x)
        if self.ngrams is not None:
            recent = slot["recent"].numpy()[0]
            before = recent.tolist() if position else [-1] * (self.longest - 1)
            for row in ngram_rows_at(before, one, len(self.ngrams)):
                np.add(x, self.ngrams[row], x)
            recent[:] = [*before[1:], one]
        return x, position

    def end(self, x: Array) -> Tensor:
        """See `Kit.end`."""
        return torch.from_numpy(x[None].copy())

    def last(self, x: Array, place: int) -> Array:
        """See `Kit.last`."""
        return x

    def add(self, x: Array, branch: Array) -> Array:
        """See `Kit.add`."""
        return np.add(x, branch, x)

    def norm(self, layer: nn.Module | None) -> Map:
        """See `Kit.norm`."""
        if layer is None or type(layer) is nn.Identity:
            return same
        if type(layer) is nn.LayerNorm:
            self.take(layer)
            return layer_norm(layer)
        if type(layer) is nn.RMSNorm:
            self.take(layer)
            return rms_norm(layer)
        raise Unknown(type(layer).__name__)

    def linear(self, layer: nn.Module | None, out: Array | None = None) -> Map:
        """See `Kit.linear`; `out` is the array for the result (default: a new one)."""
        if layer is None or type(layer) is nn.Identity:
            return same
        dot: Callable[[Array, Array], Array]
        add = np.add
        if type(layer) is Int8Linear and layer.numbers.numel() >= SMALL and layer.takes_digits:
            dot = digit_product(layer)
        elif type(layer) is nn.Linear or type(layer) is Int8Linear:
            weight = as_array(layer.weight)
            dot = weight.dot if weight.size < LARGE else partial(np.vecdot, weight)
        else:
            raise Unknown(type(layer).__name__)
        self.take(layer)
        result = np.empty(layer.out_features, np.float32) if out is None else out
        if getattr(layer, "bias", None) is None:
            return lambda x: dot(x, result)
        bias = as_array(layer.bias)
        return lambda x: add(dot(x, result), bias, result)

    def mlp(self, layer: MLP) -> Map:
        """See `Kit.mlp`."""
        up, down = self.linear(layer.up), self.linear(layer.down)
        activate = activation(layer.kind, layer.up.out_features)
        return lambda x: down(activate(up(x)))

    def attention(self, layer: Attention, ends: bool) -> Callable[[Array, LayerCache, int], Array]:
        """See `Kit.attention`."""
        heads, shared, width = layer.n_head, layer.n_kv_head, layer.width
        parts = np.empty((heads + 2 * shared, width), np.float32)
        project, out = self.linear(layer.qkv, parts.reshape(-1)), self.linear(layer.out)
        turned, key, value = parts[: heads + shared], parts[heads : heads + shared], parts[heads + shared :]
        query = parts[:heads].reshape(shared, -1, width)
        joined, scale = np.empty_like(query), np.array(layer.scale, np.float32)
        flat = joined.reshape(-1)
        prepare = self._prepare(layer, turned)
        matmul, multiply, softmax = np.matmul, np.multiply, torch.softmax
        room: Tensor | None = None
        arrays: tuple[Array, Array]
        views: list[tuple[Any, ...] | None] = []

        def mix(x: Array, slot: LayerCache, position: int) -> Array:
            nonlocal room, arrays, views
            if slot["keys"] is not room:
                room, arrays = slot["keys"], (slot["keys"].numpy()[0], slot["values"].numpy()[0])
                views = [None] * room.shape[2]
            view = views[position]
            if view is None:
                view = views[position] = self._views(*arrays, position, query.shape)
            new_key, new_value, keys, values, scores, weights = view
            project(x)
            prepare(position)
            new_key[...] = key
            new_value[...] = value
            multiply(query, scale, query)
            matmul(query, keys, scores)
            softmax(weights, -1, out=weights)
            matmul(scores, values, joined)
            return out(flat)

        return mix

    def mean(self, layer: CausalMean) -> Callable[[Array, LayerCache, int], Array]:
        """See `Kit.mean`."""
        out, found = self.linear(layer.out), np.empty_like(self.stream)

        def mix(x: Array, slot: LayerCache, position: int) -> Array:
            total = slot["total"][0, 0].numpy()
            np.add(total if position else 0.0, x, total)
            return out(np.divide(total, position + 1, found))

        return mix

    def _prepare(self, layer: Attention, turned: Array) -> Callable[[int], object]:
        """Return a function of the position that applies head norms and rotation to queries and keys in place.

        `turned` holds the queries and keys, (heads, width).
        """
        heads, width = len(turned), turned.shape[1]
        steps: list[Callable[[int], object]] = []
        if type(layer.query_norm) is nn.RMSNorm and type(layer.key_norm) is nn.RMSNorm:
            self.take(layer.query_norm)
            self.take(layer.key_norm)
            gains = np.repeat(
                (as_array(layer.query_norm.weight), as_array(layer.key_norm.weight)),
                (layer.n_head, layer.n_kv_head),
                axis=0,
            )
            steps.append(normalise_rows(turned, gains, epsilon(layer.query_norm)))
        elif not type(layer.query_norm) is type(layer.key_norm) is nn.Identity:
            raise Unknown(type(layer.query_norm).__name__)
        if self.rotary is not None:
            cos, sin = self.rotary
            swapped, direct, across = (
                turned.reshape(heads, 2, -1)[:, ::-1],
                np.empty_like(turned),
                np.empty((heads, 2, width // 2), np.float32),
            )
            sideways, multiply, add = across.reshape(heads, width), np.multiply, np.add

            def rotate(position: int) -> None:
                multiply(turned, cos[position], direct)
                multiply(swapped, sin[position], across)
                add(direct, sideways, turned)

            steps.append(rotate)
        if not steps:
            return lambda position: None
        if len(steps) == 1:
            return steps[0]
        first, second = steps
        return lambda position: (first(position), second(position))

    def _views(self, keys: Array, values: Array, position: int, shape: tuple[int, ...]) -> tuple[Any, ...]:
        """Return views of the cache for a position, and memory for the scores.

        These are: the position's key and value, all keys and values up to it, and the scores as an array and as a
        tensor.
        """
        seen = position + 1
        if seen not in self.score_views:
            scores = self.scores[: shape[0] * shape[1] * seen].reshape(shape[0], shape[1], seen)
            with torch.inference_mode(False):  # an inference tensor cannot be written to outside inference mode
                self.score_views[seen] = scores, torch.from_numpy(scores)
        return (
            keys[:, position],
            values[:, position],
            keys[:, :seen].swapaxes(1, 2),
            values[:, :seen],
            *self.score_views[seen],
        )
