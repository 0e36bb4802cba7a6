"""Hand-written forward and backward pass of a training step on a CPU, without autograd and memory allocation.

A training step of a small model takes a few milliseconds. With autograd, much of that is memory allocation, creation of
views and calls of autograd nodes. `_Line` allocates memory and creates views once per batch shape. A step then runs the
embedding tables, the blocks (`fast/block.py`) and the head in this memory. The reference is `Objective` with autograd;
the tests compare both.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gptloom.config.model import ModelConfig
from gptloom.config.run import IGNORE_INDEX
from gptloom.fast import LONGEST, hooks_of, why_not
from gptloom.fast import layers as by_hand
from gptloom.fast.block import Backward, Forward, Plan, Scratch, Weights
from gptloom.fast.layers import NormPlan, make_norm
from gptloom.model.cache import Context
from gptloom.model.ngram import sum_rows
from gptloom.model.transformer import Block, Decoder

Batch = Sequence[Int[Tensor, "b _"]]

COMPARED_ROWS = 2
"""Number of rows in the comparison before a run: with one row, a mistake that mixes rows would not be seen."""

NOISE = 65_537
"""Number of random values that are repeated in every parameter in the second comparison."""

TOLERANCE = 1e-10
"""Allowed relative difference between the two passes in float64; rounding explains less than 1e-13."""

ROUGH = 1e-2
"""Allowed relative difference in the precision of the training. A ReLU whose input is near 0 can cause 1e-3."""

_SUM = 2  # reduction="sum", as PyTorch's operators call it


class TrainingPass:
    """Forward and backward pass of an objective: hand-written if `why_not` allows it, otherwise by autograd.

    Before the first use, both passes compute a few rows of the first batch. If the results differ by more than
    rounding, autograd is used from then on.

    Args:
        objective: maps a batch to (summed loss in nats, number of targets); may be compiled.
        zero_grad: sets all gradients to zero.
        autocast: returns a new context manager for each forward pass.
        say: is called once with a message if the path changes after the first batch, for example because of a new hook.

    Attributes:
        why: the reason why autograd is used; None if the hand-written pass is used.
        deviation: result of `compare`; None before the comparison or without one.
    """

    def __init__(
        self,
        objective: nn.Module,
        zero_grad: Callable[[], None],
        autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
        say: Callable[[str], None] | None = None,
    ) -> None:
        """Check the objective; memory is allocated at the first batch."""
        self.objective, self.zero_grad, self.autocast, self.say = objective, zero_grad, autocast, say
        with autocast():
            self.why = why_not(objective)
        self.deviation: float | None = None
        self.line: _Line | None = None
        if self.why is None:
            modules = list(objective.modules())
            self._hooks = [hooks for module in modules for hooks in hooks_of(module)]
            self._attributes = [vars(module) for module in modules]
            self._parameters = list(objective.parameters())

    def describe(self) -> str:
        """Describe the path for a log."""
        if self.why is not None:
            return f"reference: {self.why}"
        return "fast" if self.deviation is None else f"fast (compared with the reference: {self.deviation:.1e} apart)"

    @property
    def path(self) -> str:
        """Return the path in use: fast or reference."""
        return "fast" if self.why is None else "reference"

    def __call__(self, batch: Batch, share: float, *, fresh: bool = True) -> Float[Tensor, ""]:
        """Compute the summed loss in nats (returned) and the gradients of `share` times this sum.

        Args:
            batch: arguments of the objective.
            share: factor of the gradients, for example 1 / number of targets.
            fresh: True replaces the parameters' gradients; False adds to them.
        """
        self.check(batch)
        if self.why is not None or not self._fits(batch[0]):
            return self.by_autograd(batch, share, fresh)
        inputs, targets = batch
        if self.line is None or not self.line.holds(inputs.shape):
            self.line = None  # free its memory before the next one is built
            self.line = _Line(cast(Decoder, self.objective.model), inputs.shape)
        return self.line.run(inputs, targets, share, fresh)

    def check(self, batch: Batch) -> None:
        """Compare both passes at the first batch; later, detect hooks, patched forwards and frozen parameters."""
        if self.why is not None:
            return
        seen = self.deviation is not None
        changed = (
            any(self._hooks)
            or any("forward" in one for one in self._attributes)
            or not all(p.requires_grad for p in self._parameters)
        )
        if changed:
            self.why = why_not(self.objective) or "the model has changed"
        elif not seen and batch[0].device.type == "cpu" and self._fits(batch[0]):
            self.deviation = compare(self.objective, batch)
            if not self.deviation <= TOLERANCE:
                self.why = (
                    f"its loss or gradients differ from the model's by {self.deviation:.1e} "
                    f"(rounding explains {TOLERANCE:.1e})"
                )
        if self.why is not None and seen and self.say is not None:
            self.say(f"training path: reference from here on: {self.why}")

    def _fits(self, inputs: Int[Tensor, "b t"]) -> bool:
        """True if the windows are short enough and not padded (an encoder's may be)."""
        model = cast(Decoder, self.objective.model)
        return inputs.shape[1] <= min(LONGEST, model.config.block_size) and (model.causal or bool((inputs >= 0).all()))

    def by_autograd(self, batch: Batch, share: float, fresh: bool) -> Float[Tensor, ""]:
        """Run the objective and autograd; same arguments and result as `__call__`."""
        if fresh:
            self.zero_grad()
        with self.autocast():
            nats, _ = self.objective(*batch)
        (nats * share).backward()
        return nats.detach()  # type: ignore[no-any-return]


def straight_pass(objective: nn.Module) -> Callable[[Batch, float, bool], Float[Tensor, ""]]:
    """Return the hand-written pass without checks, for comparisons; it has the interface of `TrainingPass`."""

    def both(batch: Batch, share: float, fresh: bool) -> Float[Tensor, ""]:
        inputs, targets = batch
        return _Line(cast(Decoder, objective.model), inputs.shape).run(inputs, targets, share, fresh)

    return both


def compare(objective: nn.Module, batch: Batch) -> float:
    """Compare the hand-written pass with autograd on the first rows of a batch, with the same random numbers.

    One row is compared in the precision of the training, roughly; then two rows in float64, where rounding does not
    change the sign of a ReLU's input, and so the gradients. In float64, noise is added to the weights: many weights of
    a new model are small or zero, and would hide a change such as a cap on large attention scores. Weights, gradients
    and the state of the random generator are restored.

    Returns:
        The largest of these numbers in float64: the relative difference of the losses, and the norm of a parameter's
        gradient difference divided by the norm of all gradients. Their largest in the precision of the training, if it
        is above `ROUGH`; infinity if the model cannot be computed in float64.
    """
    batch, state = [part[:COMPARED_ROWS] for part in batch], torch.get_rng_state()
    parameters = list(objective.parameters())
    grads, weights = [p.grad for p in parameters], [p.data for p in parameters]
    buffers = [(module._buffers, dict(module._buffers)) for module in objective.modules()]
    try:
        rough = _apart(objective, [part[:1] for part in batch], parameters)
        if not rough <= ROUGH:
            return rough
        _remove_grads(parameters)
        for parameter in parameters:
            parameter.data = parameter.data.to(torch.float64, copy=True)
        for present, kept in buffers:
            present.update({name: _exact(buffer) for name, buffer in kept.items()})
        _add_noise(parameters)
        try:
            return _apart(objective, batch, parameters)
        except RuntimeError:  # a constant of another precision in the model
            return float("inf")
    finally:
        for present, kept in buffers:
            present.update(kept)
        _remove_grads(parameters)
        for parameter, grad, weight in zip(parameters, grads, weights, strict=True):
            parameter.data, parameter.grad = weight, grad
        torch.set_rng_state(state)


def _exact(buffer: Tensor | None) -> Tensor | None:
    """Return a buffer in float64; integers and None unchanged."""
    return buffer if buffer is None or not buffer.is_floating_point() else buffer.double()


def _remove_grads(parameters: Sequence[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None


def _apart(objective: nn.Module, batch: Batch, parameters: Sequence[nn.Parameter]) -> float:
    """Return the largest difference of both passes; see `compare`. Gradients are overwritten."""
    state, found = torch.get_rng_state(), []
    for by_line in (False, True):
        torch.set_rng_state(state)
        _remove_grads(parameters)
        if by_line:
            nats = straight_pass(objective)(batch, 1.0, True)
        else:
            nats, _ = objective(*batch)
            nats.backward()
        grads = [torch.zeros_like(p) if p.grad is None else p.grad.to_dense() for p in parameters]
        found.append((nats.detach(), grads))
    (wanted, slopes), (nats, others) = found
    length = torch.linalg.vector_norm(torch.stack([slope.norm() for slope in slopes]))
    apart = [float((one - other).norm() / length.clamp(min=1e-30)) for one, other in zip(slopes, others, strict=True)]
    return max(float((nats - wanted).abs() / wanted.abs().clamp(min=1e-30)), *apart)


@torch.no_grad()
def _add_noise(parameters: Sequence[nn.Parameter]) -> None:
    """Add noise that makes the attention scores and the logits large, with the same values in each call."""
    noise = torch.randn(NOISE, generator=torch.Generator().manual_seed(0))
    for parameter in parameters:
        scale = 2.0 * parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.3
        flat = parameter.view(-1)
        for start in range(0, len(flat), NOISE):
            part = flat[start : start + NOISE]
            part.add_(noise[: len(part)].to(part), alpha=scale)


class _Line:
    """Forward and backward pass of a model for one batch shape, in preallocated memory.

    Args:
        model: the model. Its parameters and gradients must stay at their addresses; missing gradients are created.
        shape: batch size and sequence length.
    """

    @torch.no_grad()
    def __init__(self, model: Decoder, shape: torch.Size) -> None:
        (b, t), context, blocks = shape, Context(), cast(list[Block], model.blocks)
        context.place(t, model.device) if model.causal else context.open(
            torch.ones(shape, dtype=torch.bool, device="cpu")
        )
        like = model.embed_tokens(torch.zeros(shape, dtype=torch.int64, device=model.device), context).flatten(0, 1)
        self.model, self.shape, self.ngrams = model, shape, model.ngrams
        self.trained = [p for p in model.parameters() if self.ngrams is None or p is not self.ngrams.weight]
        for parameter in self.trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.places, self.grads = [p.data_ptr() for p in self.trained], [p.grad for p in self.trained]

        sinusoids = model.get_buffer("sinusoids")[:t] if model.config.positions == "sinusoidal" else None
        self.positions = sinusoids if model.position_table is None else model.position_table.weight.detach()[:t]
        plan, layers = make_plan(model.config), [_weights(block, context) for block in blocks]
        scratch = Scratch(like, plan, layers[0], (b, t))
        self.there = [Forward(plan, Weights(*map(_bare, w)), (b, t), model.causal, scratch) for w in layers]
        self.back = [Backward(there, Weights(*map(_grad, w))) for there, w in zip(self.there, layers, strict=True)]
        # RMSNorm stores what its backward pass needs, so one tensor serves as the stream of all layers.
        places = [torch.empty_like(like) for _ in range(2 * len(layers) + 1 if plan.norm.centred else 1)]
        self.stream = places * (1 if plan.norm.centred else 2 * len(layers) + 1)
        norm, head = cast(Any, model.final_norm), cast(nn.Linear, model.head)
        self.norm_grads = _grad(norm.weight), _grad(getattr(norm, "bias", None))
        self.norm = make_norm(plan.norm, norm.weight.detach(), _bare(getattr(norm, "bias", None)), like)
        self.head, self.head_grads = (
            by_hand.Linear(head.weight.detach(), _bare(head.bias)),
            (_grad(head.weight), _grad(head.bias)),
        )
        self.grad, self.share = torch.empty_like(like), like.new_empty(())
        self.logits, self.logprobs = (like.new_empty(len(like), len(head.weight)) for _ in range(2))

    def holds(self, shape: torch.Size) -> bool:
        """True if the shape matches, and parameters and gradients are still at the same addresses."""
        if shape != self.shape or self.places != [p.data_ptr() for p in self.trained]:
            return False
        return all(p.grad is grad for p, grad in zip(self.trained, self.grads, strict=True))

    @torch.no_grad()
    def run(
        self, inputs: Int[Tensor, "b t"], targets: Int[Tensor, "b t"], share: float, fresh: bool
    ) -> Float[Tensor, ""]:
        """See `TrainingPass`."""
        ngrams, kept, entering = self.ngrams, None, self.stream[0].view(*inputs.shape, -1)
        torch.index_select(self.model.token_table.weight, 0, inputs.flatten(), out=self.stream[0])
        if self.positions is not None:
            entering.add_(self.positions)
        if ngrams is not None:
            rows = ngrams.rows(inputs, Context())
            sums = sum_rows(ngrams.weight, rows)
            kept = ngrams.draw(sums)
            entering.add_(sums if kept is None else sums * kept)
        for layer, there in enumerate(self.there):
            there.run(*self.stream[2 * layer : 2 * layer + 3])
        nats = self._loss(self.norm.forward(self.stream[-1]), targets.flatten(), share, fresh)
        self.grad.copy_(self.norm.backward(self.grad, *self.norm_grads, fresh))
        for back in reversed(self.back):
            back.run(self.grad, self.grad, fresh)
        self._accumulate_tables(inputs, fresh)
        if ngrams is not None:
            grad = self.grad.view_as(entering)
            ngrams.accumulate_grad(rows, grad if kept is None else grad * kept, fresh)
        return nats

    def _loss(
        self, last: Float[Tensor, "n c"], targets: Int[Tensor, " n"], share: float, fresh: bool
    ) -> Float[Tensor, ""]:
        """Return the summed cross-entropy; write the gradient of the head's input to `self.grad`."""
        aten = torch.ops.aten
        self.head.forward(last, self.logits)
        torch._log_softmax(self.logits, -1, False, out=self.logprobs)
        nats, count = aten.nll_loss_forward(self.logprobs, targets, None, _SUM, IGNORE_INDEX)
        picked = aten.nll_loss_backward(
            self.share.fill_(share), self.logprobs, targets, None, _SUM, IGNORE_INDEX, count
        )
        torch._log_softmax_backward_data(picked, self.logprobs, -1, self.logprobs.dtype, out=self.logits)
        self.head.accumulate_grad(self.logits, last, *self.head_grads, fresh)
        torch.mm(self.logits, self.head.weight, out=self.grad)
        return nats  # type: ignore[no-any-return]

    def _accumulate_tables(self, inputs: Int[Tensor, "b t"], fresh: bool) -> None:
        """Compute the embedding tables' gradients from `self.grad`, the gradient of the first block's input.

        With a tied head, the token table's gradient already contains the head's part, so this one is added.
        """
        tokens, positions = self.model.token_table.weight, self.model.position_table
        grad, found = (
            cast(Tensor, tokens.grad),
            torch.ops.aten.embedding_dense_backward(self.grad, inputs.flatten(), len(tokens), -1, False),
        )
        by_hand.write_grad(found, grad, fresh and self.head_grads[0] is not grad)
        if positions is not None:
            grad, length = cast(Tensor, positions.weight.grad), inputs.shape[1]
            if fresh:
                grad[length:].zero_()
            by_hand.write_grad_sum(self.grad.view(*inputs.shape, -1), grad[:length], fresh)


def make_plan(config: ModelConfig) -> Plan:
    """Return the plan of the blocks of a configuration that `why_not` allows."""
    centred = config.norm == "layernorm"
    return Plan(
        norm=NormPlan(centred, 1e-5 if centred else 1e-6),
        heads=config.n_head,
        scale=(config.width_per_head if config.score_scale == "head" else config.n_embd) ** -0.5,
        head_norm=NormPlan(False, 1e-6) if config.qk_norm else None,
        mlp=config.mlp,
    )


def _weights(block: Block, context: Context) -> Weights:
    """Collect a block's parameters and the rotary table."""
    mixer, mlp, norm1, norm2 = cast(Any, (block.mixer, block.mlp, block.norm1, block.norm2))
    cos, sin = context.rotation or (None, None)
    return Weights(
        norm1=norm1.weight, norm1_bias=getattr(norm1, "bias", None),
        qkv=mixer.qkv.weight, qkv_bias=mixer.qkv.bias,
        query_norm=getattr(mixer.query_norm, "weight", None), key_norm=getattr(mixer.key_norm, "weight", None),
        out=mixer.out.weight, out_bias=mixer.out.bias,
        norm2=norm2.weight, norm2_bias=getattr(norm2, "bias", None),
        up=mlp.up.weight, up_bias=mlp.up.bias, down=mlp.down.weight, down_bias=mlp.down.bias,
        cos=cos, sin=sin,
    )  # fmt: skip


def _bare(tensor: Any) -> Any:
    return None if tensor is None else tensor.detach()


def _grad(tensor: Any) -> Any:
    return None if tensor is None else tensor.grad
