"""A forward and backward pass over a model's outline: every operation is called and nothing is computed, for whoever watches."""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gptloom.config import ModelConfig
from gptloom.model.base import LanguageModel
from gptloom.model.build import outline
from gptloom.model.objective import Objective
from gptloom.model.stack import Block, Stack


def prepare_outline(config: ModelConfig, *, by_hand: bool) -> LanguageModel:
    """An outline that can be run: with its tables of fixed positions, and gradients that pass away as they are added up.

    Args:
        config: the shape.
        by_hand: whether its blocks may be `whole_block`, as they are on a CPU in float32.
    """
    model = outline(config)
    for part in model.modules():
        if isinstance(part, Stack):
            _add_tables(part, config)
        elif isinstance(part, Block) and not by_hand:
            part.plan = None
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(_forget)  # type: ignore[no-untyped-call]
    return model


def run_outline(model: LanguageModel, rows: int, time: int, *watching: AbstractContextManager[object]) -> None:
    """One pass in training mode.

    Args:
        model: from `prepare_outline`.
        rows: sequences.
        time: tokens of each (of each side, for an encoder-decoder).
        watching: contexts in which the pass is made.
    """
    ids = torch.empty((rows, time), dtype=torch.int64, device="meta")
    objective = Objective(model)
    with ExitStack() as stack:
        stack.enter_context(_NothingIsPadded())
        for one in watching:
            stack.enter_context(one)
        nats, _ = objective(*[ids] * (3 if model.config.architecture == "encoder-decoder" else 2))
        (nats / ids.numel()).backward()


def _add_tables(stack: Stack, config: ModelConfig) -> None:
    """An outline is built without them, for their formulas would load PyTorch's compiler."""
    stack.config = config
    if config.positions == "rotary":
        stack.register_buffer("rotary", torch.empty((2, config.block_size, config.width_per_head), device="meta"), persistent=False)
    if config.positions == "sinusoidal":
        stack.register_buffer("sinusoids", torch.empty((config.block_size, config.n_embd), device="meta"), persistent=False)


def _forget(parameter: nn.Parameter | Tensor) -> None:
    parameter.grad = None


class _NothingIsPadded(TorchFunctionMode):
    """An encoder asks whether all of a row is text, and the meta device cannot answer."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return torch.ones((), dtype=torch.bool, device="cpu") if func is Tensor.all else func(*args, **(kwargs or {}))
