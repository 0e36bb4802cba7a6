"""A training as the documents ran theirs: the production model, objective and optimizer, with the lecture's sampler."""

import time
from dataclasses import replace

import torch
from torch import Tensor, nn

from gptloom.data.tokens import Split
from gptloom.errors import DivergedError
from gptloom.inference.evaluation import evaluate
from gptloom.model.decoder import Decoder
from gptloom.model.objective import Objective
from gptloom.model.whole_pass import TrainingPass
from gptloom.studies.reproducing.draws import LectureSampler, draw_lecture_weights
from gptloom.studies.reproducing.published import PublishedRun
from gptloom.training.gradients import shorten
from gptloom.training.optim import make_optimizer

EVAL_TOKENS = 4096
"""Tokens in one forward pass of an evaluation: enough to hide the cost of a call, and few enough for a CPU's cache."""


class LectureRun:
    """Weights first, then training and evaluation batches in the order in which they are asked for, all from one generator.

    `Trainer` cannot serve here: its batches are a function of (seed, step), and its evaluations draw nothing, so that resuming is
    exact and evaluating changes no training loss. In the documents' runs each evaluation moves the batches after it.

    Args:
        run: whose settings.
        parts: the text's ids.
        device: where the model is; data are drawn on the CPU anyway.
    """

    def __init__(self, run: PublishedRun, parts: Split, device: torch.device) -> None:
        """Seed torch's global generator, and draw the weights."""
        config, self.device = run.config, device
        torch.manual_seed(config.seed)
        self.model = Decoder(config.model)
        if run.lecture_weights:  # from the beginning again: the constructor has drawn as well, in an order of its own
            torch.manual_seed(config.seed)
            draw_lecture_weights(self.model)
        self.model.to(device).train()
        self.sampler = LectureSampler(parts, config.model.block_size, config.train.batch_size, device)
        self.objective = Objective(self.model)
        self.optimizer = make_optimizer(self.model, config.train)
        self.passes = TrainingPass(self.objective, self.optimizer.zero_grad)
        self.eval_iters, self.clip = run.eval_iters, config.train.grad_clip

    def evaluate(self) -> tuple[float, float]:
        """Train and validation loss, nats per character, each the mean over `eval_iters` batches drawn now."""
        rows = max(1, EVAL_TOKENS // self.sampler.block_size)
        scores = [evaluate(self.objective, batches, device=self.device) for batches in self.sampler.evaluation(self.eval_iters, rows).values()]
        return scores[0].loss, scores[1].loss

    def step(self) -> Tensor:
        """Draw a batch and take one optimizer step; the loss before it, nats per character (a scalar, on the device)."""
        batch = self.sampler.batch()
        targets = batch[-1].numel()
        loss = self.passes(batch, 1.0 / targets) / targets
        if self.clip:
            gradients = self.optimizer.gradients()
            shorten(gradients, self.clip, float(nn.utils.get_total_norm(gradients)))
        self.optimizer.step()
        return loss

    def advance(self, steps: int) -> None:
        """Take so many steps.

        Raises:
            DivergedError: the last loss is not a number.
        """
        loss = torch.zeros(())
        for _ in range(steps):
            loss = self.step()
        if not torch.isfinite(loss):
            raise DivergedError("the loss is no longer a number", where="ladder --reproduce", cure="this is a fault of gptloom or of this machine's torch")


def expected_seconds(run: PublishedRun, parts: Split, device: torch.device, steps: int | None = None) -> float:
    """About how long a run up to step `steps` would take here, from small steps (at most 512 tokens each) of the same model."""
    train = run.config.train
    rows = max(1, min(train.batch_size, 512 // run.config.model.block_size))
    small = replace(run, config=run.config.model_copy(update={"train": train.model_copy(update={"batch_size": rows})}))
    rehearsal = LectureRun(small, parts, device)
    seconds: list[float] = []
    while sum(seconds[1:]) < 0.2:  # the first step is always slower
        start = time.perf_counter()
        float(rehearsal.step())
        seconds.append(time.perf_counter() - start)
    step = min(seconds[1:]) * train.batch_size / rows
    due = run.due(steps)
    # Without a backward pass, an evaluation's batch costs about a third of a step.
    return due[-1] * step + len(due) * 2 * run.eval_iters * step / 3
