"""Measurements of a model on a text: activations, gradients, units that are off, and gradient by distance."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gptloom.interpret.trace import attention_entropy
from gptloom.model.attention import Attention
from gptloom.model.base import LanguageModel, evaluating
from gptloom.model.cache import Context, Trace
from gptloom.model.layers import MLP, CausalMean, activate

OFF = 0.01
"""A hidden unit is off where its magnitude is at most this share of its layer's root mean square."""


@dataclass(frozen=True)
class Hidden:
    """The hidden units of one MLP.

    Attributes:
        name: name of the MLP.
        off: share of (position, unit) pairs that are off, see `OFF`; about a half for ReLU.
        dead: share of units that are off at every position of the text.
    """

    name: str
    off: float
    dead: float


@dataclass(frozen=True)
class Weight:
    """One tensor of parameters and its gradient.

    Attributes:
        name: name of the parameter.
        shape: shape of the parameter.
        weight_rms: root mean square of its entries.
        gradient_rms: root mean square of the gradient of the mean loss.
        ratio: gradient_rms / weight_rms; None if all weights are zero.
    """

    name: str
    shape: tuple[int, ...]
    weight_rms: float
    gradient_rms: float
    ratio: float | None


@dataclass
class Vitals:
    """Measurements of one forward and backward pass; `dataclasses.asdict` makes them JSON.

    Attributes:
        loss: mean, in nats per token.
        stream: root mean square of the embeddings and of the residual stream after each block.
        branches: root mean square of the output of each mixer and each MLP, by name.
        hidden: the hidden units of each MLP.
        attention_entropy: for each layer, the mean entropy of each head in nats.
        parameters: all parameters, in the model's order.
    """

    loss: float
    stream: list[float] = field(default_factory=list)
    branches: dict[str, float] = field(default_factory=dict)
    hidden: list[Hidden] = field(default_factory=list)
    attention_entropy: list[list[float]] = field(default_factory=list)
    parameters: list[Weight] = field(default_factory=list)


def vitals(model: LanguageModel, ids: Int[Tensor, "b t"]) -> Vitals:
    """Run one forward and backward pass without dropout; the `.grad` of the parameters does not change.

    Args:
        model: the model.
        ids: at least 2 tokens per row; all but the last are inputs, all but the first are targets.

    Raises:
        ValueError: fewer than 2 tokens, or more than block_size + 1.
    """
    inputs, targets = _shifted(ids)
    module, trace = model, Trace()
    branches: dict[str, float] = {}
    hidden: list[Hidden] = []
    with evaluating(module), torch.enable_grad(), _watched(module, branches, hidden):
        logits = model.unembed(model.forward_hidden(inputs, Context(trace=trace)))
        loss = nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
        named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        gradients = torch.autograd.grad(loss, [p for _, p in named], allow_unused=True)
    return Vitals(
        loss=float(loss.detach()),
        stream=[_rms(stream) for stream in trace.stream],
        branches=branches,
        hidden=hidden,
        attention_entropy=[attention_entropy(weights).tolist() for weights in trace.attention],
        parameters=[_weight(name, p.detach(), gradient) for (name, p), gradient in zip(named, gradients, strict=True)],
    )


def gradient_by_distance(model: LanguageModel, ids: Int[Tensor, "b t"]) -> tuple[list[int], list[float]]:
    """Measure how much a loss depends on earlier tokens: |d loss(t) / d embedding(t - k)| against the distance k.

    The norm is averaged over the rows and over all positions t that have a token at distance k. This works for any
    model with a `token_table`. A model cannot learn from distances at which the gradient vanishes (Bengio et al. 1994;
    Pascanu et al. 2013).

    Args:
        model: the model; it runs without dropout.
        ids: at least 2 tokens per row; all but the last are inputs.

    Returns:
        The distances 0 to t - 2, and the mean norm at each distance.

    Raises:
        ValueError: fewer than 2 tokens, or more than block_size + 1.
    """
    inputs, targets = _shifted(ids)
    module, embedded = model, list[Tensor]()

    def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    last = inputs.shape[1]
    sums = torch.zeros(last, dtype=torch.float64)
    with ExitStack() as stack:
        stack.enter_context(evaluating(module))
        stack.enter_context(torch.enable_grad())
        # cuDNN's recurrent layers have no backward pass in evaluation mode; PyTorch's own layers have one.
        stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        stack.callback(module.get_submodule("token_table").register_forward_hook(keep).remove)
        logits = model.unembed(model.forward_hidden(inputs)).float()
        losses = nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
        for position in range(last):
            (gradient,) = torch.autograd.grad(losses[:, position].sum(), embedded, retain_graph=True)
            norms = gradient[:, : position + 1].double().norm(dim=-1).mean(0).cpu()
            sums[: position + 1] += norms.flip(0)
    counts = torch.arange(last, 0, -1)
    return list(range(last)), (sums / counts).tolist()


@contextmanager
def _watched(module: nn.Module, branches: dict[str, float], hidden: list[Hidden]) -> Iterator[None]:
    """Record the root mean square of every branch's output and the hidden units of every MLP during a pass."""

    def branch(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda _module, _inputs, output: branches.update({name: _rms(output)})

    def units(name: str, mlp: MLP) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda _module, _inputs, output: hidden.append(_hidden(name, activate(output.detach(), mlp.kind)))

    with ExitStack() as stack:
        for name, part in module.named_modules():
            if isinstance(part, (Attention, CausalMean, MLP)):
                stack.callback(part.register_forward_hook(branch(name)).remove)
            if isinstance(part, MLP):
                stack.callback(part.up.register_forward_hook(units(name, part)).remove)
        yield


def _hidden(name: str, activations: Float[Tensor, "b t h"]) -> Hidden:
    off = activations.abs() <= OFF * activations.square().mean().sqrt()
    return Hidden(name, float(off.float().mean()), float(off.all(1).all(0).float().mean()))


def _weight(name: str, weight: Tensor, gradient: Tensor | None) -> Weight:
    size, slope = _rms(weight), 0.0 if gradient is None else _rms(gradient)
    return Weight(name, tuple(weight.shape), size, slope, slope / size if size else None)


def _rms(tensor: Tensor) -> float:
    return float(tensor.detach().float().square().mean().sqrt())


def _shifted(ids: Tensor) -> tuple[Tensor, Tensor]:
    if ids.shape[1] < 2:
        raise ValueError(f"at least 2 tokens are needed to measure a loss, not {ids.shape[1]}")
    return ids[:, :-1], ids[:, 1:]
