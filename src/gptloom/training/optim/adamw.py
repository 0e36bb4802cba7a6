"""AdamW on flat buffers, and parameter groups with and without weight decay."""

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import nn

from gptloom.config.run import TrainConfig
from gptloom.fast.flat import Flat, FlatOptimizer
from gptloom.model.ngram import HashedNgrams

EPSILON = 1e-8
"""AdamW's epsilon, added to the root of the second moment: the paper's value, and PyTorch's default."""


def parameter_groups(
    model: nn.Module,
    weight_decay: float,
    decay: Literal["matrices", "all"] = "matrices",
    only: Iterable[str] | None = None,
) -> list[dict[str, Any]]:
    """Return the groups of trainable parameters: those with weight decay, and those without.

    Args:
        model: the model.
        weight_decay: of the first group.
        decay: "matrices": matrices decay; tables (also a tied head), gains and biases do not. "all": all parameters
            decay, as with PyTorch's AdamW of `model.parameters()`.
        only: names of the parameters to group; by default all.

    Raises:
        ValueError: a parameter is in no group, or in both.
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
    """AdamW (Loshchilov and Hutter 2019) on one flat buffer per group, with PyTorch's fused kernel.

    Args:
        model: on its final device and in its final dtype.
        config: `learning_rate`, `beta1`, `beta2`, `weight_decay` and `decay` are used.
        only: names of the parameters to train; by default all.
    """

    kinds = ("step", "exp_avg", "exp_avg_sq")

    def __init__(self, model: nn.Module, config: TrainConfig, *, only: Iterable[str] | None = None) -> None:
        """Move every parameter and its gradient into the buffers."""
        names = {id(p): name for name, p in model.named_parameters()}
        groups = parameter_groups(model, config.weight_decay, config.decay, only)
        settings = {"lr": config.learning_rate, "betas": (config.beta1, config.beta2), "eps": EPSILON}
        super().__init__(
            [Flat([(names[id(p)], p) for p in group["params"]]) for group in groups],
            [settings | {"weight_decay": group["weight_decay"]} for group in groups],
        )

    @torch.no_grad()
    def step(self) -> None:
        """Apply the gradients."""
        for flat, memory, group in zip(self.flats, self.memory, self.param_groups, strict=True):
            flat.gather()
            if not memory:
                memory |= {
                    "step": torch.zeros((), device=flat.whole.device),
                    "exp_avg": torch.zeros_like(flat.grad),
                    "exp_avg_sq": torch.zeros_like(flat.grad),
                }
            memory["step"] += 1
            means, squares, steps = [memory["exp_avg"]], [memory["exp_avg_sq"]], [memory["step"]]
            beta1, beta2 = group["betas"]
            torch._fused_adamw_(
                [flat.whole], [flat.grad], means, squares, [], steps, lr=group["lr"], beta1=beta1, beta2=beta2,
                weight_decay=group["weight_decay"], eps=group["eps"], amsgrad=False, maximize=False,
            )  # fmt: skip
