"""Estimates of training memory: peak activations, from a run on the meta device, and weights, gradients and state."""

import weakref
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from gptloom.config.model import ModelConfig
from gptloom.config.run import RunConfig
from gptloom.fast.train import TrainingPass
from gptloom.generate.task import task_of
from gptloom.model.base import LanguageModel
from gptloom.model.build import meta_model
from gptloom.model.loss import Objective
from gptloom.model.ngram import HashedNgrams
from gptloom.model.transformer import Stack
from gptloom.training.optim import hidden_matrices

_LONGEST = 16  # simulated positions of a recurrent network; memory grows linearly with the positions


@lru_cache(maxsize=64)
def activation_bytes(config: ModelConfig, rows: int, *, dtype: torch.dtype = torch.float32, on_cpu: bool = True) -> int:
    """Estimate the peak bytes of a forward and backward pass, without weights, gradients and optimizer state.

    Counts every tensor during its lifetime; the workspace inside kernels is not counted.

    Args:
        config: the model's configuration.
        rows: rows of block_size tokens (pairs of rows, for an encoder-decoder) in the pass.
        dtype: dtype of matrix products: float32, or the autocast dtype.
        on_cpu: selects the fused kernels. A CPU has no fused attention with dropout, and no fused RMSNorm.
    """
    model = _prepare(config)
    alive = _Alive([*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters() if p.grad is not None)])
    time = min(config.block_size, _LONGEST) if config.is_recurrent else config.block_size
    _run(model, rows, time, _Kernels(dtype, on_cpu), alive, fast=on_cpu and dtype == torch.float32)
    return alive.peak * config.block_size // time


def _prepare(config: ModelConfig) -> LanguageModel:
    """Build a meta model that can be run: with its fixed position tables, and allocated gradients."""
    model = meta_model(config)
    for part in model.modules():
        if isinstance(part, Stack):
            _add_tables(part, config)
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter)
    return model


def _run(model: LanguageModel, rows: int, time: int, *watching: AbstractContextManager[object], fast: bool) -> None:
    """Run a forward and backward pass over `rows` rows of `time` tokens (on each side, for an encoder-decoder)."""
    ids = torch.empty((rows, time), dtype=torch.int64, device="meta")
    with ExitStack() as stack:
        stack.enter_context(_NothingIsPadded())
        for one in watching:
            stack.enter_context(one)
        objective, batch = Objective(model), [ids] * (3 if task_of(model.config).pairs else 2)
        if fast:
            TrainingPass(objective, _leave)(batch, 1.0)
        else:
            objective(*batch)[0].backward()


def _add_tables(stack: Stack, config: ModelConfig) -> None:
    """Add empty position tables: meta models have none, because computing them would import PyTorch's compiler."""
    stack.config = config
    if config.positions == "rotary":
        stack.register_buffer(
            "rotary", torch.empty((2, config.block_size, config.width_per_head), device="meta"), persistent=False
        )
    if config.positions == "sinusoidal":
        stack.register_buffer(
            "sinusoids", torch.empty((config.block_size, config.n_embd), device="meta"), persistent=False
        )


def _leave() -> None:
    """Keep the gradients in place."""


class _NothingIsPadded(TorchFunctionMode):
    """Answers an encoder's test for padding with "none", because the meta device has no values."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return torch.ones((), dtype=torch.bool, device="cpu") if func is Tensor.all else func(*args, **(kwargs or {}))


class _Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of live storages that were allocated in this mode; views of earlier storages do not count."""

    def __init__(self, before: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kept = [tensor.untyped_storage() for tensor in before]  # alive, so that their ids are not reused
        self.before = {storage._cdata for storage in self.kept}
        self.peak = self.live = 0
        self.known: dict[int, tuple[int, weakref.ref[Any]]] = {}

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else (made,):
            if isinstance(one, Tensor):
                self._add(one.untyped_storage())
        return made

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self.known and key not in self.before:
            self.known[key] = (storage.nbytes(), weakref.ref(storage, lambda _: self._drop(key)))
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)

    def _drop(self, key: int) -> None:
        self.live -= self.known.pop(key)[0]


class _Kernels(TorchFunctionMode):
    """Imitates a real device on the meta device: its fused kernels and autocast."""

    def __init__(self, dtype: torch.dtype, on_cpu: bool) -> None:
        super().__init__()
        self.dtype, self.on_cpu = dtype, on_cpu
        self.copies: dict[int, Tensor] = {}

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if func is F.scaled_dot_product_attention:
            query, key, value = (self._cast(part) for part in args)
            if self.on_cpu and given["dropout_p"] > 0:
                return _spelled(query, key, value, given["dropout_p"])
            return _Fused.apply(query, key, value)  # type: ignore[no-untyped-call]
        if func is F.linear and self.dtype != torch.float32:
            return func(*(part if part is None else self._cast(part) for part in args))
        if func is F.embedding_bag:
            return _Rows.apply(*args[:2], self.on_cpu)  # type: ignore[no-untyped-call]
        if func is F.rms_norm and not self.on_cpu:
            return F.layer_norm(args[0], args[1], given.get("weight"))
        return func(*args, **given)

    def _cast(self, x: Tensor) -> Tensor:
        """Cast as autocast does: weights once, other tensors each time."""
        if self.dtype == torch.float32 or x.dtype == self.dtype:
            return x
        if not isinstance(x, nn.Parameter):
            return x.to(self.dtype)
        return self.copies.setdefault(id(x), x.to(self.dtype))


class _Fused(Function):
    """Fused attention: saves inputs, output and one number per query, but no score matrix."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(part) for part in ctx.saved_tensors[:3])


class _Rows(Function):
    """Embedding bag: on a CPU, backward allocates gradients of the rows in the batch; dense ones are not counted."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, sparse: bool) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.sparse = sparse
        return weight.new_empty(len(rows), weight.shape[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor | None, None]:
        (rows,) = ctx.saved_tensors
        if ctx.sparse:
            gradients[0].new_empty(rows.numel(), gradients[0].shape[1])
        return None, None, None


def _spelled(query: Tensor, key: Tensor, value: Tensor, drop: float) -> Tensor:
    """Attention that stores the score matrix."""
    key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], dim=1) for part in (key, value))
    scores = (query * 1.0) @ (key * 1.0).transpose(-2, -1)
    return F.dropout((scores + scores.new_empty(scores.shape[-2:])).softmax(-1), drop) @ value


FLOAT, INDEX = 4, 8
"""Bytes of a float32 value, and of a row index."""


@dataclass(frozen=True)
class Held:
    """Bytes on each device.

    Attributes:
        weights: bytes of the weights.
        gradients: bytes of the gradients; for an n-gram table on a CPU, at most the rows that a batch can contain.
        optimizer: two values per weight with AdamW (assumed for classes of torch.optim, too), one with Muon, and one
            per row with AdaGrad.
    """

    weights: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """Sum of the three."""
        return self.weights + self.gradients + self.optimizer


def held_bytes(config: RunConfig, *, on_cpu: bool) -> Held:
    """Return the float32 bytes that training holds between steps; temporary memory of an update is not counted."""
    model, train = meta_model(config.model), config.train
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    tables = {f"{name}.weight": part for name, part in model.named_modules() if isinstance(part, HashedNgrams)}
    with_momentum = hidden_matrices(model) if train.optimizer == "muon" else set[str]()
    gradients = optimizer = 0
    for name, size in sizes.items():
        if name in tables and train.torch_optimizer is None:
            rows, width = tables[name].weight.shape
            looked_up = min(rows, train.batch_size * config.model.block_size * (tables[name].longest - 1))
            gradients += looked_up * (FLOAT * width + INDEX) if on_cpu and train.ranks == 1 else FLOAT * size
            optimizer += FLOAT * rows
        else:
            gradients += FLOAT * size
            optimizer += FLOAT * size * (1 if name in with_momentum else 2)
    return Held(FLOAT * sum(sizes.values()), gradients, optimizer)
