"""What happens inside a layer, on numpy's arrays (c,). Each function writes its result into an array of its own."""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from gptloom.model.kit import Unknown
from gptloom.model.quantised import DIGITS, HALVES, LARGEST, SMALLEST, Int8Linear

Array = npt.NDArray[np.float32]
Map = Callable[[Array], Array]


def layer_norm(layer: nn.LayerNorm) -> Map:
    """As `nn.LayerNorm`."""
    width, gain, bias = layer.weight.numel(), as_array(layer.weight), None if layer.bias is None else as_array(layer.bias)
    out, shift, rate = np.empty(width, np.float32), np.empty((), np.float32), np.empty((), np.float32)
    mean, square = np.full(width, 1 / width, np.float32).dot, out.dot
    subtract, multiply, add, root, of_width, least = np.subtract, np.multiply, np.add, math.sqrt, math.sqrt(width), width * layer.eps

    def apply(x: Array) -> Array:
        mean(x, shift)
        subtract(x, shift, out)
        rate[()] = of_width / root(square(out) + least)  # 1 / root(variance + eps)
        multiply(out, rate, out)
        multiply(out, gain, out)
        return out if bias is None else add(out, bias, out)

    return apply


def rms_norm(layer: nn.RMSNorm) -> Map:
    """As `nn.RMSNorm`."""
    width, gain = layer.weight.numel(), as_array(layer.weight)
    out, rate, multiply, root = np.empty(width, np.float32), np.empty((), np.float32), np.multiply, math.sqrt
    of_width, least = math.sqrt(width), width * epsilon(layer)

    def apply(x: Array) -> Array:
        rate[()] = of_width / root(x.dot(x) + least)  # 1 / root(mean square + eps)
        return multiply(multiply(x, rate, out), gain, out)

    return apply


def normalise_rows(x: Array, gains: Array, eps: float) -> Callable[[int], object]:
    """RMSNorm of each row of one array, in place."""
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
    """An MLP's non-linearity on `width` numbers, as `layers.activate`; it may overwrite what it is given."""
    zero, other, multiply, add, maximum = np.zeros((), np.float32), np.empty(width, np.float32), np.multiply, np.add, np.maximum
    if kind == "relu":
        return lambda x: maximum(x, zero, out=x)
    if kind == "relu2":
        return lambda x: multiply(maximum(x, zero, out=x), x, x)
    with torch.inference_mode(False):  # a tensor made in that mode could be written to in no other
        tensor = torch.from_numpy(other)
    if kind == "gelu":  # by its formula: PyTorch's own needs 5 microseconds to begin
        half, one, root = np.array(0.5, np.float32), np.array(1.0, np.float32), np.array(math.sqrt(0.5), np.float32)

        def gelu(x: Array) -> Array:
            multiply(x, root, other)
            torch.erf(tensor, out=tensor)
            add(other, one, other)
            return multiply(multiply(other, half, other), x, x)

        return gelu
    if kind == "gelu-tanh":
        cubic, inner, half, one = (np.array(number, np.float32) for number in (0.044715, math.sqrt(2 / math.pi), 0.5, 1.0))

        def gelu_tanh(x: Array) -> Array:
            multiply(multiply(x, x, other), cubic, other)  # sqrt(2 / pi) (x + 0.044715 x^3) = sqrt(2 / pi) x (1 + 0.044715 x^2)
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
    """As `quantised.digit_product` of one vector, without the bias; the second argument is where the result shall stand. The layer `takes_digits`."""
    width, scale, matrix, product = layer.in_features, as_array(layer.scale), layer.numbers.detach().t(), torch._int_mm
    scaled, whole, digits = np.empty(width, np.float32), np.empty(width, np.int32), np.empty((DIGITS, width), np.int8)
    signed, parts = whole.view(np.int8).reshape(width, 4).T[:DIGITS], np.empty((DIGITS, layer.out_features), np.float32)
    with torch.inference_mode(False):  # a tensor made in that mode could be written to in no other
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
    """What is added to the mean square."""
    if layer.eps is None:
        raise Unknown("RMSNorm without eps")
    return layer.eps


def as_array(tensor: Tensor) -> Array:
    """The numbers where they are."""
    return tensor.detach().numpy()


def same(x: Array) -> Array:
    """Nothing."""
    return x
