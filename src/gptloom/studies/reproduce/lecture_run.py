"""A training as the documents ran theirs: gptloom's model and trainer, with the lecture's random numbers.

Everywhere else in gptloom, a batch is a function of (seed, step). The published tables were measured differently:
weights, training batches and evaluation batches were drawn from torch's global CPU generator. A run reproduces the
tables only if it draws the same numbers in the same order. The order was checked against the tables
(shared/lecture/PROTOCOL.md).
"""

import time
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gptloom.data.batches import Batch
from gptloom.data.tokens import Split
from gptloom.generate.task import evaluate
from gptloom.model.attention import Attention
from gptloom.model.loss import Objective
from gptloom.model.transformer import Decoder
from gptloom.studies.reproduce.published import PublishedRun
from gptloom.training.schedule import make_horizon
from gptloom.training.setup import setup

Part = Literal["train", "val"]
PARTS: tuple[Part, Part] = ("train", "val")


class LectureSampler:
    """Windows that start anywhere, drawn with replacement.

    Args:
        parts: training and validation ids.
        block_size: tokens per window.
        batch_size: windows per batch.
        device: device of the batches; the random numbers are always drawn on the CPU.
    """

    def __init__(self, parts: Split, block_size: int, batch_size: int, device: torch.device | None = None) -> None:
        """Copy the ids from the memory map."""
        self.block_size, self.batch_size = block_size, batch_size
        self.ids = {
            part: torch.from_numpy(tokens.ids.astype("int64")).to(device)
            for part, tokens in zip(PARTS, (parts.train, parts.val), strict=True)
        }
        self._columns = torch.arange(block_size + 1, device=device)

    def starts(self, part: Part) -> Int[Tensor, " b"]:
        """Draw the start positions of the next batch from the global generator."""
        return torch.randint(len(self.ids[part]) - self.block_size, (self.batch_size,))

    def batch(self, step: int) -> Batch:
        """Draw the next training batch. It does not depend on the step, but on all draws before it."""
        return self.draw("train")

    def draw(self, part: Part) -> Batch:
        """Draw the next batch of one part."""
        return self._read(part, self.starts(part))

    def evaluation(self, batches: int, rows: int) -> dict[Part, Iterator[Batch]]:
        """Draw the batches of one evaluation, those of the training split first.

        Args:
            batches: number of batches per split.
            rows: windows per yielded batch. All batches have the same size, so the mean over batches is the mean over
                windows, and larger passes are faster.
        """
        drawn = {part: torch.cat([self.starts(part) for _ in range(batches)]) for part in PARTS}
        return {part: self._hand_out(part, drawn[part], rows) for part in PARTS}

    def _hand_out(self, part: Part, starts: Int[Tensor, " n"], rows: int) -> Iterator[Batch]:
        for first in range(0, len(starts), rows):
            yield self._read(part, starts[first : first + rows])

    def _read(self, part: Part, starts: Int[Tensor, " b"]) -> Batch:
        windows = self.ids[part][starts.to(self._columns.device)[:, None] + self._columns]
        return Batch(windows[:, :-1], windows[:, 1:])


def draw_lecture_weights(model: Decoder) -> None:
    """Draw a model's weights in the order of the lecture's modules, with PyTorch's default initializers.

    The order: token embedding, position embedding; in each block the heads (`draw_heads`), the output projection and
    the two layers of the MLP; finally the head. Norms draw nothing. Each weight is copied from a new layer, because
    PyTorch draws weights in constructors.

    Args:
        model: its attention has no biases and as many key heads as query heads, as in the lecture.
    """
    _draw_layer(model.token_table)
    _draw_layer(model.position_table)
    for block in model.blocks:
        if isinstance(attention := block.mixer, Attention):
            draw_heads(attention)
            _draw_layer(attention.out)
        if isinstance(block.mlp, nn.Module):
            _draw_layer(block.mlp.up)
            _draw_layer(block.mlp.down)
    _draw_layer(model.head)


def draw_heads(attention: Attention) -> None:
    """Draw key, query and value of each head as three separate layers, and copy them into the fused matrix.

    The rows of that matrix are the queries of all heads, then the keys, then the values.
    """
    heads, width, fused = attention.n_head, attention.width, attention.qkv
    if attention.n_kv_head != heads or "bias" in fused.state_dict():
        raise ValueError("the lecture's heads have no biases, and share no keys and values")
    rows = fused.weight.detach().view(3, heads, width, fused.in_features)
    queries, keys, values = 0, 1, 2
    for head in range(heads):
        for kind in (keys, queries, values):
            rows[kind, head] = _linear_weight(fused.in_features, width)


def _linear_weight(inputs: int, outputs: int) -> Float[Tensor, "outputs inputs"]:
    return nn.Linear(inputs, outputs, bias=False).weight.detach()


def _draw_layer(layer: object) -> None:
    """Draw the weights of an embedding or a linear layer as its constructor does; nothing for other layers."""
    drawn: nn.Embedding | nn.Linear
    if isinstance(layer, nn.Embedding):
        drawn = nn.Embedding(layer.num_embeddings, layer.embedding_dim)
    elif isinstance(layer, nn.Linear):
        drawn = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    else:
        return
    layer.load_state_dict(drawn.state_dict())


EVAL_TOKENS = 4096
"""Tokens per forward pass of an evaluation: enough to hide the cost of calls, and few enough for a CPU's cache."""


class LectureRun:
    """A training that draws weights, training batches and evaluation batches from one generator, as the documents do.

    In gptloom's own runs, batches are a function of (seed, step) and evaluations draw nothing, so that resuming is
    exact and evaluating changes no training loss. In the documents' runs each evaluation moves the batches after it:
    so this class calls `Trainer.step`, and evaluates between the steps.

    Args:
        run: the published run.
        parts: the text's ids.
        device: where the model is; batches are always drawn on the CPU.
    """

    def __init__(self, run: PublishedRun, parts: Split, device: torch.device) -> None:
        """Seed torch's global generator, and draw the weights."""
        config, self.device = run.config, device
        torch.manual_seed(config.seed)
        self.model = Decoder(config.model)
        if run.lecture_weights:  # the constructor has drawn weights in another order
            torch.manual_seed(config.seed)
            draw_lecture_weights(self.model)
        self.model.to(device).train()
        self.sampler = LectureSampler(parts, config.model.block_size, config.train.batch_size, device)
        self.objective, self.eval_iters = Objective(self.model), run.eval_iters
        per_step = config.train.batch_size * config.model.block_size
        horizon = make_horizon(config.train, Fraction(len(parts.train), per_step))
        self.trainer = setup(config, model=self.model, batches=self.sampler, horizon=horizon, reseed=False)

    def evaluate(self) -> tuple[float, float]:
        """Training and validation loss in nats per character, each the mean over `eval_iters` new batches."""
        rows = max(1, EVAL_TOKENS // self.sampler.block_size)
        scores = [
            evaluate(self.objective, batches, device=self.device)
            for batches in self.sampler.evaluation(self.eval_iters, rows).values()
        ]
        return scores[0].loss, scores[1].loss

    def step(self) -> float:
        """Take one optimizer step on a new batch; returns the loss before it, in nats per character.

        Raises:
            DivergedError: the loss is not finite.
        """
        self.trainer.step()
        return self.trainer.train_loss

    def advance(self, steps: int) -> None:
        """Take this many steps."""
        for _ in range(steps):
            self.step()


def expected_seconds(run: PublishedRun, parts: Split, device: torch.device, steps: int | None = None) -> float:
    """Estimate the time of a run up to step `steps` from small steps (at most 512 tokens) of the same model."""
    train = run.config.train
    rows = max(1, min(train.batch_size, 512 // run.config.model.block_size))
    small = replace(run, config=run.config.model_copy(update={"train": train.model_copy(update={"batch_size": rows})}))
    rehearsal = LectureRun(small, parts, device)
    seconds: list[float] = []
    while sum(seconds[1:]) < 0.2:  # the first step is always slower
        start = time.perf_counter()
        rehearsal.step()
        seconds.append(time.perf_counter() - start)
    step = min(seconds[1:]) * train.batch_size / rows
    due = run.due(steps)
    # Without a backward pass, an evaluation's batch costs about a third of a step.
    return due[-1] * step + len(due) * 2 * run.eval_iters * step / 3
