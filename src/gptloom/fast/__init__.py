"""Checks whether the hand-written passes support a model: `why_not` for training, `why_not_decode` for sampling.

Both are whitelists. A model with an unknown field of `ModelConfig`, an unknown value or module class, a patched method
or a hook is trained and sampled by the reference: the model itself, with autograd. A new field is refused until it is
added to the tables below.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from gptloom.config.model import ModelConfig
from gptloom.fast.int8 import Int8Linear
from gptloom.model.attention import Attention
from gptloom.model.base import LanguageModel
from gptloom.model.layers import MLP, CausalMean
from gptloom.model.loss import Objective
from gptloom.model.ngram import HashedNgrams
from gptloom.model.transformer import Block, Decoder, Stack

LONGEST = 256
"""Maximum context of the training pass. It stores all attention weights; their number is quadratic in the context."""

ANY = object()
"""Marks a field of which every value is supported, for example a size or a rate that the passes read."""

_BOOL = frozenset((True, False))
_MLPS = frozenset(("relu", "gelu", "gelu-tanh", "swiglu", "relu2"))

_SIZES: dict[str, Any] = dict.fromkeys(
    (
        "vocab_size",
        "block_size",
        "n_layer",
        "n_head",
        "n_kv_head",
        "n_embd",
        "head_size",
        "mlp_width",
        "ngrams",
        "ngram_rows",
        "rope_theta",
    ),
    ANY,
)
_BOTH: dict[str, Any] = _SIZES | {
    "score_scale": frozenset(("head", "embedding")),
    "qk_norm": _BOOL,
    "positions": frozenset(("learned", "sinusoidal", "rotary", "none")),
    "ngram_dropout": ANY,
    "bias": frozenset(("all", "not-qkv", "none")),
    "head_bias": _BOOL,
    "tables": frozenset(("separate", "shared")),
    "init": frozenset(("pytorch", "gpt2", "zero-projection")),
}

TRAINED: dict[str, Any] = _BOTH | {
    "architecture": frozenset(("decoder", "encoder")),
    "mixer": frozenset(("attention",)),
    "output_projection": frozenset((True,)),
    "mlp": _MLPS,
    "residual": frozenset(("add",)),
    "norm": frozenset(("layernorm", "rmsnorm")),
    "norm_position": frozenset(("pre",)),
    "head": frozenset(("linear", "tied")),
    "dropout": frozenset((0.0,)),
    "attn_dropout": frozenset((None, 0.0)),
    "embd_dropout": frozenset((None, 0.0)),
}
"""Values of each field of `ModelConfig` that the training pass supports."""

DECODED: dict[str, Any] = _BOTH | {
    "architecture": frozenset(("decoder",)),
    "mixer": frozenset(("attention", "mean", "none")),
    "output_projection": _BOOL,
    "mlp": _MLPS | {"none"},
    "residual": frozenset(("add", "none")),
    "norm": frozenset(("none", "layernorm", "rmsnorm")),
    "norm_position": frozenset(("pre", "post")),
    "head": frozenset(("linear", "tied", "none")),
    "dropout": ANY,  # sampling uses evaluation mode
    "attn_dropout": ANY,
    "embd_dropout": ANY,
}
"""Values of each field of `ModelConfig` that the fast decoder steps support."""

_OBJECTIVE = {*vars(nn.Module()), "label_smoothing"}
"""Attributes of an `Objective` besides its model."""

_OURS = (Objective, Decoder, Stack, Block, Attention, CausalMean, MLP, HashedNgrams)
_TORCHS = (nn.Linear, nn.Embedding, nn.LayerNorm, nn.RMSNorm, nn.Identity, nn.Dropout, nn.ModuleList)
_KNOWN = {*_OURS, *_TORCHS, Int8Linear} - {Stack}
_METHODS = {kind: dict(vars(kind)) for kind in (*_OURS, *_TORCHS, Int8Linear)}
"""The methods of each class at import time, to detect methods that are replaced later."""


def why_not(objective: nn.Module, batch: Sequence[Tensor] | None = None) -> str | None:
    """Return the reason why `fast.train` cannot compute an objective's forward and backward pass; None if it can.

    Args:
        objective: the module that training minimises; only an `Objective` with a `Decoder` is supported.
        batch: inputs and targets, (b, t) each. If given, its length is checked, too.
    """
    if type(objective) is not Objective:
        return f"the objective is a {type(objective).__name__}"
    if any(type(p).__name__ == "DTensor" for p in objective.parameters()):
        return "the parameters are sharded (DTensors)"
    if type(objective.model) is not Decoder:
        return f"the model is a {type(objective.model).__name__}"
    if objective.label_smoothing:
        return "label smoothing is not known to fast/"
    if unknown := sorted(vars(objective).keys() - _OBJECTIVE):
        return f"the objective has the attribute {unknown[0]}, which is not known to fast/"
    config, device = objective.model.config, objective.model.device
    reason = unknown_field(config, TRAINED) or _unknown_shape(config) or unknown_module(objective)
    if reason is None and device.type not in ("cpu", "meta"):
        reason = f"the passes are for a CPU, not for {device.type}"
    if reason is None and torch.is_autocast_enabled("cpu"):
        reason = "autocast is on"
    if reason is None and any(isinstance(module, Int8Linear) for module in objective.modules()):
        reason = "int8 weights are not trained"
    if reason is None and not all(p.requires_grad for p in objective.parameters()):
        reason = "some parameters are frozen"
    if reason is None and batch is not None and batch[0].shape[1] > min(LONGEST, config.block_size):
        reason = f"the context is longer than {LONGEST} tokens"
    return reason


def why_not_decode(model: LanguageModel) -> str | None:
    """Return the reason why the fast steps of `fast.decode` cannot compute a model's logits; None if they can."""
    if type(model) is not Decoder:
        return f"the model is a {type(model).__name__}"
    return unknown_field(model.config, DECODED) or unknown_module(model)


def unknown_field(config: ModelConfig, known: Mapping[str, Any]) -> str | None:
    """Describe the first field whose value is not in the table `known`; None if all are."""
    for name in type(config).model_fields:
        if name not in known:
            return f"{name} is not known to fast/"
        if known[name] is not ANY and getattr(config, name) not in known[name]:
            return f"{name}={getattr(config, name)!r} is not known to fast/"
    return None


def unknown_module(root: nn.Module) -> str | None:
    """Describe the first module of `root` with an unknown class, a replaced method or a hook; None if there is none."""
    if any(hooks for hooks in _global_hooks()):
        return "a hook is registered on all modules"
    for name, module in root.named_modules():
        where = name or type(root).__name__
        if type(module) not in _KNOWN:
            return f"{where} is a {type(module).__name__}"
        if any(hooks for hooks in hooks_of(module)):
            return f"a hook is registered on {where}"
        if any(callable(value) and hasattr(type(module), key) for key, value in vars(module).items()):
            return f"a method of {where} has been replaced"
    for kind, methods in _METHODS.items():
        if any(vars(kind).get(key) is not value for key, value in methods.items() if callable(value)):
            return f"a method of {kind.__name__} has been replaced"
    if any(p._backward_hooks or p._post_accumulate_grad_hooks for p in root.parameters()):
        return "a hook is registered on a parameter"
    return None


def hooks_of(module: nn.Module) -> list[dict[int, Any]]:
    """Return a module's dictionaries of hooks. The objects never change, so callers can store and check them later."""
    return [module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks]


def _global_hooks() -> Iterator[dict[int, Any]]:
    torch_hooks = torch.nn.modules.module
    forward = torch_hooks._global_forward_hooks, torch_hooks._global_forward_pre_hooks
    return chain(forward, (torch_hooks._global_backward_hooks, torch_hooks._global_backward_pre_hooks))


def _unknown_shape(config: ModelConfig) -> str | None:
    """Describe an unsupported combination of values; None if there is none."""
    if not config.n_layer:
        return "the model has no blocks"
    if config.kv_heads != config.n_head:
        return "fewer key and value heads than queries are not known to fast/"
    if config.architecture == "encoder" and config.head == "tied":
        return "an encoder with a tied head is not known to fast/"
    return None
