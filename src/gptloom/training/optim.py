"""AdamW with weight decay on matrices only (or on everything), its parameters laid out in one buffer a group."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from gptloom.config import TrainConfig

EPSILON = 1e-8
"""Added to the root of the mean squared gradient: the paper's value, and PyTorch's."""


def parameter_groups(model: nn.Module, weight_decay: float, decay: Literal["matrices", "all"] = "matrices") -> list[dict[str, Any]]:
    """Groups that partition the trainable parameters into those that decay and those that do not.

    "matrices": matrices do, and tables, gains and biases do not; a tied head is a table. "all": everything
    decays, as it does where PyTorch's AdamW is simply given `model.parameters()`.

    Raises:
        ValueError: the groups leave a parameter out or hold one twice.
    """
    tables = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    parameters = [p for p in model.parameters() if p.requires_grad]
    matrices = {id(p) for p in parameters if p.ndim > 1} - tables
    chosen = matrices if decay == "matrices" else {id(p) for p in parameters}
    decayed = [p for p in parameters if id(p) in chosen]
    others = [p for p in parameters if id(p) not in chosen]
    if {id(p) for p in decayed + others} != {id(p) for p in parameters} or len(decayed) + len(others) != len(parameters):
        raise ValueError("the optimizer's groups do not partition the parameters")
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


class FlatAdamW:
    """AdamW (Loshchilov and Hutter 2019) on one flat parameter a group, of which the model's parameters become views.

    A small model has dozens of small tensors, and on a CPU it is their number that costs: laid out like this, the update, the
    gradient's norm and its zeroing are one operation each. The arithmetic is PyTorch's own, in its fused kernel, but this is no
    `torch.optim.Optimizer`: to make one loads PyTorch's compiler and SymPy, 0.8 seconds before the first step.

    Args:
        model: already on its device and in its type; moving it later would cut the views off.
        config: learning rate, betas, weight decay and what decays.
    """

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        """Move every parameter and its gradient into the buffers."""
        names = {id(p): name for name, p in model.named_parameters()}
        self.views: list[tuple[str, nn.Parameter, Tensor]] = []
        self.places: dict[str, tuple[nn.Parameter, slice]] = {}
        groups = parameter_groups(model, config.weight_decay, config.decay)
        for group in groups:
            members = group["params"]
            flat = nn.Parameter(torch.cat([p.detach().flatten() for p in members]))
            flat.grad = torch.zeros_like(flat)
            start = 0
            for p in members:
                place = slice(start, start := start + p.numel())
                p.data = flat.data[place].view_as(p)
                self.views.append((names[id(p)], p, flat.grad[place].view_as(p)))
                self.places[names[id(p)]] = (flat, place)
            group |= {"params": [flat], "lr": config.learning_rate, "betas": (config.beta1, config.beta2)}
        self.param_groups = groups
        self.state: dict[Tensor, dict[str, Tensor]] = {}
        self.flats: list[Tensor] = [group["params"][0] for group in groups]
        self.zero_grad()

    def zero_grad(self) -> None:
        """Zero the buffers, and see to it that every gradient is a view of them."""
        for flat in self.flats:
            if flat.grad is not None:
                flat.grad.zero_()
        for _, parameter, view in self.views:
            if parameter.grad is not view:
                parameter.grad = view

    @torch.no_grad()
    def step(self) -> None:
        """AdamW's step; gradients that others have replaced (`nn.Module.zero_grad` sets them to None) are brought back first."""
        for _, parameter, view in self.views:
            if parameter.grad is not view:
                view.copy_(parameter.grad) if parameter.grad is not None else view.zero_()
                parameter.grad = view
        for group, flat in zip(self.param_groups, self.flats, strict=True):
            if flat.grad is not None:
                self._update(flat, flat.grad, group)

    def _update(self, flat: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        if flat not in self.state:
            self.state[flat] = {"step": torch.zeros((), device=flat.device), "exp_avg": torch.zeros_like(flat), "exp_avg_sq": torch.zeros_like(flat)}
        state, (beta1, beta2) = self.state[flat], group["betas"]
        state["step"] += 1
        torch._fused_adamw_(
            [flat],
            [gradient],
            [state["exp_avg"]],
            [state["exp_avg_sq"]],
            [],  # AMSGrad's
            [state["step"]],
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=group["weight_decay"],
            eps=EPSILON,
            amsgrad=False,
            maximize=False,
        )

    def tensors(self) -> dict[str, Tensor]:
        """Copies of the optimizer's memory by parameter, such as exp_avg/head.weight, in the CPU's memory."""
        found = {}
        for name, parameter, _ in self.views:
            flat, place = self.places[name]
            for kind, value in self.state.get(flat, {}).items():
                found[f"{kind}/{name}"] = (value if kind == "step" else value[place].view_as(parameter)).to("cpu", copy=True)
        return found

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Put `tensors()` back, and nothing else: what was remembered before is gone.

        Raises:
            ValueError: a tensor belongs to no parameter of this model, or has another shape.
        """
        self.state.clear()
        shapes = {name: parameter.shape for name, parameter, _ in self.views}
        for key, tensor in tensors.items():
            kind, _, name = key.partition("/")
            if name not in shapes or (kind != "step" and tensor.shape != shapes[name]):
                raise ValueError(f"the optimizer's {key} fits no parameter of this model")
            flat, place = self.places[name]
            state = self.state.setdefault(flat, {})
            if kind == "step":
                state[kind] = tensor.clone() if flat.device.type == "cpu" else tensor.to(flat.device)
            else:
                state.setdefault(kind, torch.zeros_like(flat))[place] = tensor.flatten().to(flat.device)
