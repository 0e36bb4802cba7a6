"""AdamW, with weight decay on matrices only."""

from typing import Any

import torch
from torch import Tensor, nn

from gptloom.config import TrainConfig


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups that partition the trainable parameters: the weights of linear layers decay; tables, gains and biases do not.

    A tied head is a table. Raises ValueError if a parameter is in neither group or in both.
    """
    tables = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    matrices = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)} - tables
    parameters = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in parameters if id(p) in matrices]
    others = [p for p in parameters if id(p) not in matrices]
    if len(decayed) + len(others) != len(parameters) or sum(p.numel() for p in decayed + others) != sum(p.numel() for p in parameters):
        raise ValueError("the optimizer's groups do not partition the parameters")
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019), in one fused kernel a group."""
    groups = parameter_groups(model, config.weight_decay)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), eps=1e-8, fused=True)


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's memory under readable names, such as exp_avg/head.weight, ready for safetensors."""
    names = {id(p): name for name, p in model.named_parameters()}
    return {f"{key}/{names[id(p)]}": value for p, memory in optimizer.state.items() for key, value in memory.items() if isinstance(value, Tensor)}


def restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put `optimizer_tensors` back, each onto its parameter's device.

    Raises:
        ValueError: a tensor belongs to no parameter, or its shape is wrong.
    """
    parameters = dict(model.named_parameters())
    for key, tensor in tensors.items():
        kind, _, name = key.partition("/")
        if name not in parameters or (kind != "step" and tensor.shape != parameters[name].shape):
            raise ValueError(f"the optimizer's {key} fits no parameter of this model")
        device = torch.device("cpu") if kind == "step" and parameters[name].device.type == "cpu" else parameters[name].device
        optimizer.state[parameters[name]][kind] = tensor.to(device)
