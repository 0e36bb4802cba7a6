"""Hand-written forward and backward pass of a Transformer block on a CPU, made of the parts in `fast/layers.py`."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from gptloom.fast import layers as by_hand
from gptloom.fast.layers import NormPlan


class Plan(NamedTuple):
    """Configuration of a block.

    Attributes:
        norm: norm of each branch's input.
        heads: number of heads; queries, keys and values have the same number.
        scale: factor of the attention scores.
        head_norm: RMSNorm of queries and keys, or None.
        mlp: the activation's name in `ModelConfig.mlp`.
    """

    norm: NormPlan
    heads: int
    scale: float
    head_norm: NormPlan | None
    mlp: str


class Weights(NamedTuple):
    """Parameters of a `Block`, and the rotary table (`cos`, `sin`); None for those that the block does not have."""

    norm1: Tensor
    norm1_bias: Tensor | None
    qkv: Tensor
    qkv_bias: Tensor | None
    query_norm: Tensor | None
    key_norm: Tensor | None
    out: Tensor
    out_bias: Tensor | None
    norm2: Tensor
    norm2_bias: Tensor | None
    up: Tensor
    up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None
    cos: Tensor | None
    sin: Tensor | None


class Scratch:
    """Scratch memory of the passes of a block. All blocks of a model share it.

    Args:
        like: a tensor with the dtype and device of the residual stream.
        plan: the blocks' configuration.
        weights: the parameters of one block; only shapes are used.
        shape: batch size and sequence length.
    """

    def __init__(self, like: Tensor, plan: Plan, weights: Weights, shape: tuple[int, int]) -> None:
        """Allocate the tensors."""
        self.shape = shape
        (b, t), h, d, n = shape, plan.heads, weights.out.shape[1] // plan.heads, shape[0] * shape[1]
        self.three, self.qkv = like.new_empty(3, h * b, t, d), like.new_empty(n, 3 * h * d)
        self.scores, self.values = like.new_empty(h * b, t, t), like.new_empty(h * b, t, d)
        self.narrow, self.middle, self.joined = (
            like.new_empty(n, len(weights.out)),
            like.new_empty(n, len(weights.out)),
            like.new_empty(n, h * d),
        )
        self.inner = like.new_empty(n, len(weights.up))
        self.active = like.new_empty(n, weights.down.shape[1]) if plan.mlp == "swiglu" else self.inner
        self.turned = like.new_empty(2 * h, b, t, d if plan.head_norm is not None and weights.cos is not None else 0)


class Forward:
    """Forward pass of a block for one batch shape, in preallocated memory.

    Args:
        plan: the block's configuration.
        w: the block's parameters; the pass keeps views of them.
        shape: batch size and sequence length.
        causal: True if a position sees only itself and earlier positions.
        scratch: shared memory.
    """

    def __init__(self, plan: Plan, w: Weights, shape: tuple[int, int], causal: bool, scratch: Scratch) -> None:
        """Allocate memory and create all views."""
        (b, t), h, d, like = shape, plan.heads, scratch.three.shape[-1], scratch.narrow
        self.plan, self.w, self.shape, self.scratch = plan, w, shape, scratch
        self.norm1, self.norm2 = (
            by_hand.make_norm(plan.norm, *one, like) for one in ((w.norm1, w.norm1_bias), (w.norm2, w.norm2_bias))
        )
        self.qkv, self.out = by_hand.Linear(w.qkv, w.qkv_bias), by_hand.Linear(w.out, w.out_bias)
        self.up, self.down = by_hand.Linear(w.up, w.up_bias), by_hand.Linear(w.down, w.down_bias)
        three = torch.empty_like(scratch.three)
        self.attention = by_hand.Attention(three, plan.scale, causal, scratch.scores, scratch.values)
        self.joined = torch.empty_like(scratch.joined)
        self.heads, self.joined_heads = (
            scratch.values.view(h, b, t, d).permute(1, 2, 0, 3),
            self.joined.view(b, t, h, d),
        )
        self.inner = torch.empty_like(scratch.inner)
        self.active = self.inner if plan.mlp == "relu" else torch.empty_like(scratch.active)
        self.activation = by_hand.Activation(plan.mlp, self.inner, self.active)
        # The head axis comes first, so that queries and keys are one slice.
        self.mixed, self.split = scratch.qkv.view(b, t, 3 * h, d).permute(2, 0, 1, 3), three.view(3 * h, b, t, d)
        pair, turned = self.split[: 2 * h], self.mixed[: 2 * h]
        if plan.head_norm is not None:
            self.unit, self.rate, self.gains = (
                torch.empty_like(pair),
                pair.new_empty(2 * h, b, t, 1),
                pair.new_empty(2, d),
            )
            turned = pair if w.cos is None else scratch.three.view(3 * h, b, t, d)[: 2 * h]
            self.unit_halves, self.turned_halves = self.unit.view(2, h, b, t, d), turned.view(2, h, b, t, d)
            self.gains_halves = self.gains[:, None, None, None]
        self.rotation = None if w.cos is None or w.sin is None else by_hand.Rotation(w.cos, w.sin, 1.0, turned, pair)
        self.mixed_pair, self.mixed_value, self.value = self.mixed[: 2 * h], self.mixed[2 * h :], self.split[2 * h :]

    def run(self, x: Float[Tensor, "n c"], middle: Float[Tensor, "n c"], out: Float[Tensor, "n c"]) -> None:
        """Compute `out` from x; `middle` is the residual stream after attention.

        With RMSNorm the three may be the same tensor. With LayerNorm, x and `middle` must not change until the backward
        pass.
        """
        self.seen = self.norm1.forward(x)
        self.qkv.forward(self.seen, self.scratch.qkv)
        self._split()
        self.attention.forward()
        self.joined_heads.copy_(self.heads)
        self.out.forward_onto(x, self.joined, middle)
        self.thought = self.norm2.forward(middle)
        self.up.forward(self.thought, self.inner)
        self.activation.forward()
        self.down.forward_onto(middle, self.active, out)

    def _split(self) -> None:
        """Split qkv, apply head norms and rotation, and write queries, keys and values to attention's input."""
        norm, w = self.plan.head_norm, self.w
        if norm is None and self.rotation is None:
            self.split.copy_(self.mixed)
            return
        if norm is not None and w.query_norm is not None and w.key_norm is not None:
            by_hand.rms_rate(self.mixed_pair, norm.eps, self.rate)
            torch.mul(self.mixed_pair, self.rate, out=self.unit)
            torch.stack((w.query_norm, w.key_norm), out=self.gains)
            torch.mul(self.unit_halves, self.gains_halves, out=self.turned_halves)
        if self.rotation is not None:
            self.rotation.run()
        self.value.copy_(self.mixed_value)


class Backward:
    """Backward pass of a block.

    Args:
        there: the forward pass, which must run first.
        grads: tensors that receive the gradients of the parameters.
    """

    def __init__(self, there: Forward, grads: Weights) -> None:
        """Create all views."""
        (b, t), w, h, scratch = there.shape, there.w, there.plan.heads, there.scratch
        self.there, self.grads, self.scratch, d = there, grads, scratch, scratch.three.shape[-1]
        self.joined, self.heads = scratch.joined.view(b, t, h, d).permute(2, 0, 1, 3), scratch.values.view(h, b, t, d)
        self.three, self.split = scratch.three.unbind(), scratch.three.view(3 * h, b, t, d)
        self.mixed = scratch.qkv.view(b, t, 3 * h, d).permute(2, 0, 1, 3)
        self.pair, self.mixed_pair, self.value, self.mixed_value = (
            self.split[: 2 * h],
            self.mixed[: 2 * h],
            self.split[2 * h :],
            self.mixed[2 * h :],
        )
        self.turned = self.pair if w.cos is None else scratch.turned
        turned = self.mixed_pair if there.plan.head_norm is None else scratch.turned
        self.rotation = (
            None if w.cos is None or w.sin is None else by_hand.Rotation(w.cos, w.sin, -1.0, self.pair, turned)
        )

    def run(self, grad: Float[Tensor, "n c"], out: Float[Tensor, "n c"], fresh: bool) -> None:
        """Compute the gradient of x in `out`, given that of the output in `grad`; may be in place."""
        there, to, scratch, narrow = self.there, self.grads, self.scratch, self.scratch.narrow
        there.down.accumulate_grad(grad, there.active, to.down, to.down_bias, fresh)
        torch.mm(grad, there.w.down, out=scratch.active)
        there.activation.backward(scratch.active, scratch.inner)
        there.up.accumulate_grad(scratch.inner, there.thought, to.up, to.up_bias, fresh)
        torch.mm(scratch.inner, there.w.up, out=narrow)
        middle = torch.add(there.norm2.backward(narrow, to.norm2, to.norm2_bias, fresh), grad, out=scratch.middle)
        there.out.accumulate_grad(middle, there.joined, to.out, to.out_bias, fresh)
        torch.mm(middle, there.w.out, out=scratch.joined)
        self.heads.copy_(self.joined)
        there.attention.backward(self.three)
        self._split(fresh)
        there.qkv.accumulate_grad(scratch.qkv, there.seen, to.qkv, to.qkv_bias, fresh)
        torch.mm(scratch.qkv, there.w.qkv, out=narrow)
        torch.add(there.norm1.backward(narrow, to.norm1, to.norm1_bias, fresh), middle, out=out)

    def _split(self, fresh: bool) -> None:
        """Compute the gradients of qkv and of the head norms' gains from those of queries, keys and values."""
        there, to = self.there, self.grads
        if there.plan.head_norm is None and self.rotation is None:
            self.mixed.copy_(self.split)
            return
        if self.rotation is not None:
            self.rotation.run()
        if there.plan.head_norm is not None and to.query_norm is not None and to.key_norm is not None:
            halves = self.turned.view(there.unit_halves.shape)
            for place, found in zip(
                (to.query_norm, to.key_norm), (halves * there.unit_halves).sum((1, 2, 3)), strict=True
            ):
                by_hand.write_grad(found, place, fresh)
            halves.mul_(there.gains_halves)
            torch.mul(by_hand.rms_backward(self.turned, there.unit), there.rate, out=self.mixed_pair)
        self.mixed_value.copy_(self.value)
