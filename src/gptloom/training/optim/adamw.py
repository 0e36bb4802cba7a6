"""Optimizers: AdamW for most, Muon for matrices and AdaGrad for the rows of large tables, side by side under one interface."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gptloom.config.run import TrainConfig
from gptloom.fast.flat import Flat, FlatOptimizer, unfit
from gptloom.model.ngram import HashedNgrams
from gptloom.training.interfaces import Optimizer, Ranks
from gptloom.training.optim.adagrad import RowAdagrad
from gptloom.training.optim.muon import Muon

EPSILON = 1e-8
"""Added to the root of AdamW's mean squared gradient: the paper's value, and PyTorch's."""

KEPT = ("step", "exp_avg", "exp_avg_sq")
"""What AdamW remembers of a parameter, by PyTorch's names."""


def make_optimizer(model: nn.Module, config: TrainConfig, ranks: Ranks | None = None) -> Optimizer:
    """The optimizer that a configuration asks for. The model is on its device and in its type, and stays there.

    Args:
        model: its parameters become views of the optimizer's buffers.
        config: which optimizer, rates, means and decay.
        ranks: who else trains; work that would be the same on every rank is shared out.
    """
    tables = {f"{name}.weight": module for name, module in model.named_modules() if isinstance(module, HashedNgrams)}
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    parts: list[Optimizer] = []
    if config.optimizer == "muon":
        inside = hidden_matrices(model)
        matrices = [(name, p) for name, p in named.items() if name in inside]
        parts += [Muon(matrices, config, ranks or Ranks())] if matrices else []
    parts += [RowAdagrad(name, module, config, ranks or Ranks()) for name, module in tables.items()]
    held = {name for part in parts for name in part.decays}
    if rest := [name for name in named if name not in held]:
        parts.append(FlatAdamW(model, config, only=rest, ranks=ranks))
    return parts[0] if len(parts) == 1 else Several(parts)


def hidden_matrices(model: nn.Module) -> set[str]:
    """Names of the matrices inside the blocks: those of linear and recurrent layers, but no table and no head."""
    tables = {id(p) for m in model.modules() if isinstance(m, nn.Embedding | HashedNgrams) for p in m.parameters()}
    return {
        name
        for name, p in model.named_parameters()
        if p.requires_grad and p.ndim == 2 and id(p) not in tables and name != "head.weight"
    }


def parameter_groups(
    model: nn.Module,
    weight_decay: float,
    decay: Literal["matrices", "all"] = "matrices",
    only: Iterable[str] | None = None,
) -> list[dict[str, Any]]:
    """Groups that partition the trainable parameters (or `only` those named) into those that decay and those that do not.

    "matrices": matrices do, and tables, gains and biases do not; a tied head is a table. "all": everything
    decays, as it does where PyTorch's AdamW is simply given `model.parameters()`.

    Raises:
        ValueError: the groups leave a parameter out or hold one twice.
    """
    tables = {id(p) for m in model.modules() if isinstance(m, nn.Embedding | HashedNgrams) for p in m.parameters()}
    names = None if only is None else set(only)
    parameters = [p for name, p in model.named_parameters() if p.requires_grad and (names is None or name in names)]
    matrices = {id(p) for p in parameters if p.ndim > 1} - tables
    chosen = matrices if decay == "matrices" else {id(p) for p in parameters}
    decayed = [p for p in parameters if id(p) in chosen]
    others = [p for p in parameters if id(p) not in chosen]
    if {id(p) for p in decayed + others} != {id(p) for p in parameters} or len(decayed) + len(others) != len(
        parameters
    ):
        raise ValueError("the optimizer's groups do not partition the parameters")
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


class FlatAdamW(FlatOptimizer):
    """AdamW (Loshchilov and Hutter 2019) on one flat parameter a group.

    The arithmetic is PyTorch's own, in its fused kernel, but this is no `torch.optim.Optimizer`: to make one loads
    PyTorch's compiler and SymPy, most of a second before the first step.

    Args:
        model: already on its device and in its type.
        config: learning rate, betas, weight decay and what decays.
        only: names of the parameters that it is to train; by default all.
        ranks: who else trains.
    """

    def __init__(
        self, model: nn.Module, config: TrainConfig, *, only: Iterable[str] | None = None, ranks: Ranks | None = None
    ) -> None:
        """Move every parameter and its gradient into the buffers."""
        names = {id(p): name for name, p in model.named_parameters()}
        groups = parameter_groups(model, config.weight_decay, config.decay, only)
        super().__init__(
            [Flat([(names[id(p)], p) for p in group["params"]]) for group in groups],
            config.learning_rate,
            ranks or Ranks(),
        )
        self.weight_decays = [group["weight_decay"] for group in groups]
        self.memory: list[dict[str, Tensor]] = [{} for _ in groups]
        self.betas = config.beta1, config.beta2

    @property
    def decays(self) -> dict[str, float]:
        """See `Optimizer.decays`."""
        return {name: decay for decay, flat in zip(self.weight_decays, self.flats, strict=True) for name in flat.places}

    @torch.no_grad()
    def step(self) -> None:
        """AdamW's step."""
        for flat, memory, decay in zip(self.flats, self.memory, self.weight_decays, strict=True):
            flat.gather()
            if not memory:
                memory |= {
                    "step": torch.zeros((), device=flat.whole.device),
                    "exp_avg": torch.zeros_like(flat.grad),
                    "exp_avg_sq": torch.zeros_like(flat.grad),
                }
            memory["step"] += 1
            means, squares, steps = [memory["exp_avg"]], [memory["exp_avg_sq"]], [memory["step"]]
            torch._fused_adamw_(
                [flat.whole], [flat.grad], means, squares, [], steps, lr=self.rate, beta1=self.betas[0], beta2=self.betas[1],
                weight_decay=decay, eps=EPSILON, amsgrad=False, maximize=False,
            )  # fmt: skip

    def tensors(self) -> dict[str, Tensor]:
        """Copies of the means and of the count of steps by parameter, such as exp_avg/head.weight, in the CPU's memory."""
        found: dict[str, Tensor] = {}
        for flat, memory in zip(self.flats, self.memory, strict=True):
            for kind, value in memory.items():
                parts = (
                    {name: value.to("cpu", copy=True) for name in flat.places} if kind == "step" else flat.split(value)
                )
                found |= {f"{kind}/{name}": part for name, part in parts.items()}
        return found

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put `tensors()` back, and nothing else: what was remembered before is gone.

        Raises:
            ValueError: a tensor belongs to no parameter of this model, or has another shape.
        """
        self.memory = [{} for _ in self.flats]
        homes = {name: place for place, flat in enumerate(self.flats) for name in flat.places}
        for key, tensor in tensors.items():
            kind, _, name = key.partition("/")
            if name not in homes or kind not in KEPT:
                raise unfit(key)
            flat, memory = self.flats[homes[name]], self.memory[homes[name]]
            if kind == "step":
                memory[kind] = tensor.to(flat.whole.device, copy=True)
            else:
                flat.fill(memory.setdefault(kind, torch.zeros_like(flat.grad)), key, tensor)


class Several(Optimizer):
    """Optimizers side by side, each with parameters of its own."""

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        """Together they are one."""
        self.parts = parts

    @property
    def decays(self) -> dict[str, float]:
        """See `Optimizer.decays`."""
        return {name: decay for part in self.parts for name, decay in part.decays.items()}

    def set_rate(self, share: float) -> None:
        """See `Optimizer.set_rate`."""
        for part in self.parts:
            part.set_rate(share)

    def zero_grad(self) -> None:
        """See `Optimizer.zero_grad`."""
        for part in self.parts:
            part.zero_grad()

    def gradients(self) -> list[Tensor]:
        """See `Optimizer.gradients`."""
        return [gradient for part in self.parts for gradient in part.gradients()]

    def reduce(self) -> None:
        """See `Optimizer.reduce`."""
        for part in self.parts:
            part.reduce()

    def step(self) -> None:
        """See `Optimizer.step`."""
        for part in self.parts:
            part.step()

    def tensors(self) -> dict[str, Tensor]:
        """See `Optimizer.tensors`."""
        return {key: tensor for part in self.parts for key, tensor in part.tensors().items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """See `Optimizer.restore`."""
        homes = {name: part for part in self.parts for name in part.decays}
        shares: dict[int, dict[str, Tensor]] = {id(part): {} for part in self.parts}
        for key, tensor in tensors.items():
            home = homes.get(key.partition("/")[2])
            if home is None:
                raise unfit(key)
            shares[id(home)][key] = tensor
        for part in self.parts:
            part.restore(shares[id(part)])
