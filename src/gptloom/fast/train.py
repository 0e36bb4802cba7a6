"""A training step's forward and backward pass on a CPU as one straight line, without autograd and without asking for memory.

A small model is trained in steps of a few milliseconds, and much of that used to go into finding memory, making views of it and calling
one node of autograd after another. Here all of it is done once for a shape of batch: then a step is `block_passes`, one after the
other over memory that stays, between the tables and the head. `Objective` and autograd are the reference, and the tests hold the two together.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gptloom.config.run import IGNORED
from gptloom.fast import layers as by_hand
from gptloom.fast.block import Backward, Forward, Plan, Scratch, Weights
from gptloom.fast.layers import make_norm
from gptloom.fast.whole_block import LONGEST
from gptloom.model.cache import Context
from gptloom.model.loss import Objective
from gptloom.model.ngram import look_up
from gptloom.model.transformer import Block, Decoder

Batch = Sequence[Int[Tensor, "b _"]]

_SUM = 2  # reduction="sum", as PyTorch's operators call it


class TrainingPass:
    """The forward and the backward pass of an objective over a batch: in a straight line where that is possible, else by autograd.

    Args:
        objective: a batch to (summed nats, count); possibly compiled. From now on its model's layers stay what they are.
        zero_grad: makes all gradients zero.
        autocast: a fresh context for each forward pass.
    """

    def __init__(self, objective: nn.Module, zero_grad: Callable[[], None], autocast: Callable[[], AbstractContextManager[object]] = nullcontext) -> None:
        """Nothing is laid out before the first batch."""
        self.objective, self.zero_grad, self.autocast = objective, zero_grad, autocast
        with autocast():
            self.model = None if torch.is_autocast_enabled("cpu") else _plain_model(objective)
        self.hooks = [hooks for module in objective.modules() for hooks in _hooks(module)]
        self.line: _Line | None = None

    def __call__(self, batch: Batch, share: float, *, fresh: bool = True) -> Float[Tensor, ""]:
        """The summed loss in nats.

        Args:
            batch: what the objective takes.
            share: what the gradients are those of, as a share of that sum.
            fresh: whether they replace the parameters' gradients, or are added to them.
        """
        # Nobody listens to a part that would be passed over, and the attention's weights are few enough to keep.
        if self.model is not None and not any(self.hooks) and batch[0].shape[1] <= min(LONGEST, self.model.config.block_size):
            inputs, targets = batch
            if self.line is None or not self.line.holds(inputs.shape):
                self.line = None  # its memory is for the next one
                self.line = _Line(self.model, inputs.shape)
            return self.line.run(inputs, targets, share, fresh)
        if fresh:
            self.zero_grad()
        with self.autocast():
            nats, _ = self.objective(*batch)
        (nats * share).backward()
        return nats.detach()  # type: ignore[no-any-return]


def _plain_model(objective: nn.Module) -> Decoder | None:
    """The model of an objective whose passes are known by hand, if all of its parameters are trained."""
    if type(objective) is not Objective or objective.label_smoothing or type(objective.model) is not Decoder:
        return None
    model, blocks = objective.model, cast(list[Block], objective.model.blocks)
    ends = (model.token_table, nn.Embedding), (model.head, nn.Linear)
    as_built = all(type(part) is kind for part, kind in ends) and type(model.final_norm) in (nn.LayerNorm, nn.RMSNorm) and not model.dropout.p
    known = as_built and model.causal and len(blocks) > 0 and all(block.plan is not None and block.is_as_built() for block in blocks)
    return model if known and model.device.type in ("cpu", "meta") and all(p.requires_grad for p in model.parameters()) else None


def _hooks(module: nn.Module) -> list[dict[int, Any]]:
    return [module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks]


class _Line:
    """The two passes of a model over batches of one shape, in memory of their own.

    Args:
        model: its parameters and their gradients are where they will be; gradients that are missing are made.
        shape: batch and time.
    """

    @torch.no_grad()
    def __init__(self, model: Decoder, shape: torch.Size) -> None:
        (b, t), context, blocks = shape, Context(), cast(list[Block], model.blocks)
        context.place(t, model.device)
        like = model.look_up(torch.zeros(shape, dtype=torch.int64, device=model.device), context).flatten(0, 1)
        self.model, self.shape, self.ngrams = model, shape, model.ngrams
        self.trained = [p for p in model.parameters() if self.ngrams is None or p is not self.ngrams.weight]
        for parameter in self.trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.places, self.grads = [p.data_ptr() for p in self.trained], [p.grad for p in self.trained]

        sinusoids = model.get_buffer("sinusoids")[:t] if model.config.positions == "sinusoidal" else None
        self.positions = sinusoids if model.position_table is None else model.position_table.weight.detach()[:t]
        plan, layers = cast(Plan, blocks[0].plan), [block.weights(context) for block in blocks]
        scratch = Scratch(like, plan, layers[0], (b, t))
        self.there = [Forward(plan, Weights(*map(_bare, w)), (b, t), True, scratch) for w in layers]
        self.back = [Backward(there, Weights(*map(_grad, w))) for there, w in zip(self.there, layers, strict=True)]
        # RMSNorm keeps what it needs of the stream itself, so that one place is enough for all of it.
        places = [torch.empty_like(like) for _ in range(2 * len(layers) + 1 if plan.norm.centred else 1)]
        self.stream = places * (1 if plan.norm.centred else 2 * len(layers) + 1)
        norm, head = cast(Any, model.final_norm), cast(nn.Linear, model.head)
        self.norm_grads = _grad(norm.weight), _grad(getattr(norm, "bias", None))
        self.norm = make_norm(plan.norm, norm.weight.detach(), _bare(getattr(norm, "bias", None)), like)
        self.head, self.head_grads = by_hand.Linear(head.weight.detach(), _bare(head.bias)), (_grad(head.weight), _grad(head.bias))
        self.grad, self.share = torch.empty_like(like), like.new_empty(())
        self.logits, self.logprobs = (like.new_empty(len(like), len(head.weight)) for _ in range(2))

    def holds(self, shape: torch.Size) -> bool:
        """Whether it is made for such a batch, and weights and gradients are still where they were."""
        if shape != self.shape or self.places != [p.data_ptr() for p in self.trained]:
            return False
        return all(p.grad is grad for p, grad in zip(self.trained, self.grads, strict=True))

    @torch.no_grad()
    def run(self, inputs: Int[Tensor, "b t"], targets: Int[Tensor, "b t"], share: float, fresh: bool) -> Float[Tensor, ""]:
        """See `TrainingPass`."""
        ngrams, kept, entering = self.ngrams, None, self.stream[0].view(*inputs.shape, -1)
        torch.index_select(self.model.token_table.weight, 0, inputs.flatten(), out=self.stream[0])
        if self.positions is not None:
            entering.add_(self.positions)
        if ngrams is not None:
            rows = ngrams.rows(inputs, Context())
            sums = look_up(ngrams.weight, rows)
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

    def _loss(self, last: Float[Tensor, "n c"], targets: Int[Tensor, " n"], share: float, fresh: bool) -> Float[Tensor, ""]:
        """The sum of the cross-entropy; the gradient of what the head reads is left in `grad`."""
        aten = torch.ops.aten
        self.head.forward(last, self.logits)
        torch._log_softmax(self.logits, -1, False, out=self.logprobs)
        nats, count = aten.nll_loss_forward(self.logprobs, targets, None, _SUM, IGNORED)
        picked = aten.nll_loss_backward(self.share.fill_(share), self.logprobs, targets, None, _SUM, IGNORED, count)
        torch._log_softmax_backward_data(picked, self.logprobs, -1, self.logprobs.dtype, out=self.logits)
        self.head.accumulate_grad(self.logits, last, *self.head_grads, fresh)
        torch.mm(self.logits, self.head.weight, out=self.grad)
        return nats  # type: ignore[no-any-return]

    def _accumulate_tables(self, inputs: Int[Tensor, "b t"], fresh: bool) -> None:
        """The tables' gradients, from that of what enters the blocks, in `grad`. A tied head's is in its place already."""
        tokens, positions = self.model.token_table.weight, self.model.position_table
        grad, found = cast(Tensor, tokens.grad), torch.ops.aten.embedding_dense_backward(self.grad, inputs.flatten(), len(tokens), -1, False)
        by_hand.put(found, grad, fresh and self.head_grads[0] is not grad)
        if positions is not None:
            grad, length = cast(Tensor, positions.weight.grad), inputs.shape[1]
            if fresh:
                grad[length:].zero_()
            by_hand.put_sum(self.grad.view(*inputs.shape, -1), grad[:length], fresh)


def _bare(tensor: Any) -> Any:
    return None if tensor is None else tensor.detach()


def _grad(tensor: Any) -> Any:
    return None if tensor is None else tensor.grad
