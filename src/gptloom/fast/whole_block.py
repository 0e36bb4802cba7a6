"""A block on a CPU as one node of autograd, whose two passes are those of `block_passes`.

`Block` is the reference; the tests hold the two together, value by value and gradient by gradient.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from gptloom.config.model import ModelConfig
from gptloom.fast.block import Backward, Forward, Plan, Scratch, Weights
from gptloom.fast.layers import NormPlan
from gptloom.model.cache import Context

LONGEST = 256
"""Context up to which it pays to keep the attention weights for the backward pass: their number grows with its square."""


def make_plan(config: ModelConfig) -> Plan | None:
    """The plan of a configuration's blocks; None where only `Block` itself can compute them."""
    known = (config.norm_position, config.residual, config.mixer, config.output_projection) == ("pre", "add", "attention", True)
    drops = config.dropout or config.attn_dropout
    if not known or drops or config.kv_heads != config.n_head or "none" in (config.norm, config.mlp):
        return None
    centred = config.norm == "layernorm"
    return Plan(
        norm=NormPlan(centred, 1e-5 if centred else 1e-6),
        heads=config.n_head,
        scale=(config.width_per_head if config.score_scale == "head" else config.n_embd) ** -0.5,
        head_norm=NormPlan(False, 1e-6) if config.qk_norm else None,
        mlp=config.mlp,
    )


def pays(x: Float[Tensor, "b t c"], context: Context) -> bool:
    """Whether this is a call of the plain kind on a CPU (or in an outline): whole windows, nothing masked beyond the future, nothing traced."""
    plain = context.mask is None and context.trace is None and context.state is None and x.shape[1] <= LONGEST
    return plain and x.device.type in ("cpu", "meta") and not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling()


def whole_block(x: Float[Tensor, "b t c"], plan: Plan, context: Context, weights: Weights) -> Float[Tensor, "b t c"]:
    """What `Block` makes of x. All blocks of a call share what memory they may overwrite."""
    b, t, _ = x.shape
    if context.scratch is None or context.scratch.shape != (b, t):
        context.scratch = Scratch(x.detach(), plan, weights, (b, t))
    return _WholeBlock.apply(x, plan, context.causal, context.scratch, *weights)  # type: ignore[no-any-return, no-untyped-call]


class _WholeBlock(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, plan: Plan, causal: bool, scratch: Scratch, *given: Tensor | None) -> Tensor:
        (b, t, c), flat = x.shape, x.reshape(-1, x.shape[-1])
        ctx.there = Forward(plan, Weights(*given), (b, t), causal, scratch)  # type: ignore[arg-type]
        middle = torch.empty_like(flat)
        out = torch.empty_like(flat) if plan.norm.centred else middle
        ctx.there.run(flat, middle, out)
        ctx.save_for_backward(*given)  # so that PyTorch notices when they are changed in between
        return out.view(b, t, c)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        weights = Weights(*ctx.saved_tensors)
        grads = Weights(*(None if one is None else torch.empty_like(one) for one in weights))._replace(cos=None, sin=None)  # type: ignore[arg-type]
        flat = grad.reshape(-1, grad.shape[-1])
        Backward(ctx.there, grads).run(flat, out := torch.empty_like(flat), fresh=True)
        return out.view(grad.shape), None, None, None, *grads
