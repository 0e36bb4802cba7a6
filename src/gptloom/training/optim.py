"""Optimizers: AdamW for most, Muon for matrices and AdaGrad for the rows of large tables, side by side under one interface."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gptloom.config import TrainConfig
from gptloom.model.ngrams import HashedNgrams
from gptloom.training.job import Optimizer, Ranks
from gptloom.training.layout import Flat, unfit
from gptloom.training.muon import Muon
from gptloom.training.rows import RowAdagrad


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
        matrices = [(name, p) for name, p in named.items() if name in hidden_matrices(model)]
        parts += [Muon(matrices, config, ranks or Ranks())] if matrices else []
    parts += [RowAdagrad(name, module, config, ranks or Ranks()) for name, module in tables.items()]
    held = {name for part in parts for name in part.names}
    if rest := [name for name in named if name not in held]:
        parts.append(FlatAdamW(model, config, only=rest, ranks=ranks))
    return parts[0] if len(parts) == 1 else Several(parts)


def hidden_matrices(model: nn.Module) -> set[str]:
    """Names of the matrices inside the blocks: those of linear and recurrent layers, but no table and no head."""
    tables = {id(p) for m in model.modules() if isinstance(m, nn.Embedding | HashedNgrams) for p in m.parameters()}
    return {name for name, p in model.named_parameters() if p.requires_grad and p.ndim == 2 and id(p) not in tables and name != "head.weight"}


def parameter_groups(
    model: nn.Module, weight_decay: float, decay: Literal["matrices", "all"] = "matrices", only: Iterable[str] | None = None
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
    if {id(p) for p in decayed + others} != {id(p) for p in parameters} or len(decayed) + len(others) != len(parameters):
        raise ValueError("the optimizer's groups do not partition the parameters")
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


class FlatAdamW(torch.optim.AdamW, Optimizer):
    """AdamW (Loshchilov and Hutter 2019) on one flat parameter a group. The arithmetic is AdamW's, element by element.

    Args:
        model: already on its device and in its type.
        config: learning rate, betas, weight decay and what decays.
        only: names of the parameters that it is to train; by default all.
        ranks: who else trains.
    """

    def __init__(self, model: nn.Module, config: TrainConfig, *, only: Iterable[str] | None = None, ranks: Ranks | None = None) -> None:
        """Move every parameter and its gradient into the buffers."""
        names = {id(p): name for name, p in model.named_parameters()}
        groups = parameter_groups(model, config.weight_decay, config.decay, only)
        self.flats = [Flat([(names[id(p)], p) for p in group["params"]]) for group in groups]
        for group, flat in zip(groups, self.flats, strict=True):
            group["params"] = [flat.whole]
        self.ranks, self.peak = ranks or Ranks(), config.learning_rate
        super().__init__(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), eps=1e-8, fused=True)

    @property
    def names(self) -> list[str]:
        """The parameters that it trains."""
        return [name for flat in self.flats for name in flat.places]

    def set_rate(self, share: float) -> None:
        """See `Optimizer.set_rate`."""
        for group in self.param_groups:
            group["lr"] = self.peak * share

    def zero_grad(self, set_to_none: bool = False) -> None:
        """Zero the buffers; gradients stay views of them, so that they are never None."""
        for flat in self.flats:
            flat.zero()

    def gradients(self) -> list[Tensor]:
        """See `Optimizer.gradients`."""
        for flat in self.flats:
            flat.gather()
        return [flat.grad for flat in self.flats]

    def reduce(self) -> None:
        """See `Optimizer.reduce`."""
        self.ranks.add(*self.gradients())

    def step(self, closure: Any = None) -> Any:
        """AdamW's step."""
        for flat in self.flats:
            flat.gather()
        return super().step(closure)

    def tensors(self) -> dict[str, Tensor]:
        """Copies of the optimizer's memory by parameter, such as exp_avg/head.weight, in the CPU's memory."""
        found = {}
        for flat in self.flats:
            for kind, value in self.state[flat.whole].items():
                parts = {name: value.to("cpu", copy=True) for name in flat.places} if kind == "step" else flat.split(value)
                found |= {f"{kind}/{name}": part for name, part in parts.items()}
        return found

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put `tensors()` back, and nothing else: what was remembered before is gone.

        Raises:
            ValueError: a tensor belongs to no parameter of this model, or has another shape.
        """
        self.state.clear()
        homes = {name: flat for flat in self.flats for name in flat.places}
        for key, tensor in tensors.items():
            kind, _, name = key.partition("/")
            if name not in homes:
                raise unfit(key)
            memory, flat = self.state[homes[name].whole], homes[name]
            if kind == "step":
                memory[kind] = tensor.clone() if flat.whole.device.type == "cpu" else tensor.to(flat.whole.device)
            else:
                flat.fill(memory.setdefault(kind, torch.zeros_like(flat.whole)), key, tensor)


class Several(Optimizer):
    """Optimizers side by side, each with parameters of its own."""

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        """Together they are one."""
        self.parts = parts

    @property
    def names(self) -> list[str]:
        """The parameters that they train."""
        return [name for part in self.parts for name in part.names]

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
        homes = {name: part for part in self.parts for name in part.names}
        shares: dict[int, dict[str, Tensor]] = {id(part): {} for part in self.parts}
        for key, tensor in tensors.items():
            home = homes.get(key.partition("/")[2])
            if home is None:
                raise unfit(key)
            shares[id(home)][key] = tensor
        for part in self.parts:
            part.restore(shares[id(part)])
