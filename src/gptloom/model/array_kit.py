"""Operations on numpy's arrays (c,): one token of one row, on a CPU.

An operation of numpy's on so few numbers takes a third of the time of one of PyTorch's. Every function writes its result into an
array of its own, which holds until its next call. Weights and the state's tensors are looked at where they are, not copied.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from gptloom.model.attention import Attention
from gptloom.model.decoder import Decoder
from gptloom.model.kit import Kit, Unknown
from gptloom.model.layers import MLP, CausalMean
from gptloom.model.state import Slot

Array = npt.NDArray[np.float32]
Map = Callable[[Array], Array]


class ArrayKit(Kit[Array, int]):
    """See `Kit`. Unknown: the weights are not float32 numbers in the CPU's memory."""

    def __init__(self, model: Decoder) -> None:
        """Take the tables."""
        super().__init__()
        table = model.token_table.weight
        if table.device.type != "cpu" or table.dtype != torch.float32:
            raise Unknown(f"{table.dtype} on {table.device}")
        self.take(model.token_table)
        self.table, self.positions, self.rotary = _array(table), None, None
        if model.position_table is not None:
            self.take(model.position_table)
            self.positions = _array(model.position_table.weight)
        elif model.config.positions == "sinusoidal":
            self.positions = _array(model.get_buffer("sinusoids"))
        elif model.config.positions == "rotary":
            cos, sin = _array(model.get_buffer("rotary"))
            half = sin.shape[1] // 2
            signed = np.concatenate((-sin[:, :half], sin[:, half:]), axis=1).reshape(len(sin), 2, half)
            self.rotary = list(cos), list(signed)
        self.stream = np.empty(self.table.shape[1], np.float32)
        self.scores = np.empty(model.config.n_head * model.config.block_size, np.float32)
        self.score_views: dict[tuple[int, int, int], tuple[Array, Tensor]] = {}

    def quiet(self) -> AbstractContextManager[object]:
        """Numbers may overflow as silently as PyTorch's do."""
        return np.errstate(all="ignore")

    def begin(self, rows: Sequence[Sequence[int]], position: int) -> tuple[Array, int]:
        """See `Kit.begin`."""
        if self.positions is None:
            np.copyto(self.stream, self.table[rows[0][0]])
        else:
            np.add(self.table[rows[0][0]], self.positions[position], self.stream)
        return self.stream, position

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
            return _same
        self.take(layer)
        if type(layer) is nn.LayerNorm:
            return _layer_norm(layer)
        if type(layer) is nn.RMSNorm:
            return _rms_norm(layer)
        raise Unknown(type(layer).__name__)

    def linear(self, layer: nn.Module | None, out: Array | None = None) -> Map:
        """See `Kit.linear`; `out` is where the result shall stand."""
        if layer is None or type(layer) is nn.Identity:
            return _same
        if type(layer) is not nn.Linear:
            raise Unknown(type(layer).__name__)
        self.take(layer)
        weight, dot, add = _array(layer.weight), np.dot, np.add
        result = np.empty(len(weight), np.float32) if out is None else out
        if layer.bias is None:
            return lambda x: dot(weight, x, result)
        bias = _array(layer.bias)

        def apply(x: Array) -> Array:
            return add(dot(weight, x, result), bias, result)

        return apply

    def mlp(self, layer: MLP) -> Map:
        """See `Kit.mlp`."""
        up, down = self.linear(layer.up), self.linear(layer.down)
        activate = _activation(layer.kind, layer.up.out_features)
        return lambda x: down(activate(up(x)))

    def attention(self, layer: Attention) -> Callable[[Array, Slot, int], Array]:
        """See `Kit.attention`."""
        heads, shared, width = layer.n_head, layer.n_kv_head, layer.width
        parts = np.empty((heads + 2 * shared) * width, np.float32)
        project, out = self.linear(layer.qkv, parts), self.linear(layer.out)
        turned, key, value = np.split(parts.reshape(-1, width), (heads + shared, heads + shared), axis=0)[0], None, None
        raise NotImplementedError

    def mean(self, layer: CausalMean) -> Callable[[Array, Slot, int], Array]:
        """See `Kit.mean`."""
        raise NotImplementedError
