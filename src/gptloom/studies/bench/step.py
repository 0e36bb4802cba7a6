"""A real training step, timed: the trainer, the optimizer and the batches of a run, on made-up tokens."""

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import torch

from gptloom.checkpoint.state import Horizon, Progress
from gptloom.config.model import ModelConfig
from gptloom.config.run import RunConfig
from gptloom.data.splits import Tokens
from gptloom.data.tokenizers import CharTokenizer
from gptloom.devices import derive, pick_precision, thread_count, threads
from gptloom.fast.train import TrainingPass
from gptloom.generate.evaluate import Score
from gptloom.generate.task import reads_pairs, training_batches
from gptloom.model.build import build_model
from gptloom.model.loss import Objective
from gptloom.studies.bench.limits import Budget, Product, Products, Say, Spread
from gptloom.studies.trial import make_job
from gptloom.training.callbacks import Callback, Request, View
from gptloom.training.interfaces import Job, Source
from gptloom.training.schedule import make_horizon
from gptloom.training.setup import compile_or_not
from gptloom.training.trainer import Trainer

_LEAST, _MOST = 3, 200  # steps of one measurement; where they are long, one is enough
MAX_STEPS = 1_000_000
_TOKENS = 1 << 20


@dataclass(frozen=True)
class Steps:
    """What some training steps were.

    Attributes:
        seconds: of a step.
        tokens: that a step trains on.
        passes: forward and backward passes that it took.
        products: the matrix products of a step, the optimizer's with them.
        parameters: of the model.
        dtype: of the products.
        threads: that computed, on a CPU.
    """

    seconds: Spread
    tokens: int
    passes: int
    products: Counter[Product]
    parameters: int
    dtype: torch.dtype
    threads: int


def time_steps(config: RunConfig, device: torch.device, budget: Budget, say: Say) -> Steps:
    """Train for as long as the budget lasts once all is prepared, at least for two steps, the first of which does not count.

    Args:
        config: all settings, the vocabulary's size with them.
        device: where to train.
        budget: of time; its clock is the one that is read.
        say: told what the user should know.

    Raises:
        MachineError: it does not fit into memory.
        DivergedError: the loss is no longer a number.
    """
    torch.manual_seed(config.seed)
    train, model = config.train, build_model(config.model).to(device)
    source = made_batches(config)
    job = make_job(config, Objective(model, train.label_smoothing), source, lambda: Score(0.0, 1), device)
    batch = tuple(source.batch(0))
    model.train()
    with threads(thread_count(config)):
        products = _observe(job, batch, train.rows)
        horizon = make_horizon(train, _TOKENS, batch[-1].numel())
        job = replace(job, objective=compile_or_not(job.objective, train, horizon, device, batch, job.autocast, say))
        stamps = _Stamps(budget.again())
        trainer = Trainer(job, train, Horizon(None, MAX_STEPS), Progress(), [stamps])
        trainer.fit()
        return Steps(
            seconds=Spread.of(np.diff(stamps.times).tolist()),
            tokens=batch[-1].numel(),
            passes=-(-len(batch[0]) // trainer.progress.rows),
            products=products,
            parameters=model.parameter_count(),
            dtype=pick_precision(train.precision, device),
            threads=torch.get_num_threads(),
        )


def made_batches(config: RunConfig) -> Source:
    """Batches of tokens drawn from a generator of their own: windows of text, or pairs as long as the model takes."""
    model, several = config.model, reads_pairs(config.model)
    # An end of text follows each side of a pair, and counts as a token of the target.
    sides = (
        [model.block_size + 1, model.block_size] * config.train.batch_size
        if several
        else [max(_TOKENS, 2 * model.block_size)]
    )
    ids = np.random.default_rng(derive(config.seed, "bench")).integers(0, model.vocab_size, sum(sides))
    tokens = Tokens(ids.astype(np.uint32), np.cumsum([0, *sides[:-1]]))
    return training_batches(
        config, tokens, made_tokenizer(model, ends=True) if several else CharTokenizer("a", ends=False)
    )


def made_tokenizer(config: ModelConfig, *, ends: bool) -> CharTokenizer:
    """As many characters as the model has tokens; with `ends`, the last of them is the end of a text."""
    points = [point for point in range(0x21, 0x21 + config.vocab_size + 0x800) if not 0xD800 <= point < 0xE000]
    return CharTokenizer("".join(map(chr, points[: config.vocab_size - ends])), ends=ends)


def _observe(job: Job, batch: tuple[torch.Tensor, ...], rows: int) -> Counter[Product]:
    """The products of a step, seen in one pass and one update."""
    inside, update = Products(), Products()
    parts = [part[:rows].to(job.device) for part in batch]
    both = TrainingPass(job.objective, job.optimizer.zero_grad, job.autocast)
    both.check(parts)  # or the comparison would be counted, too
    with inside:
        both(parts, 1.0 / parts[-1].numel())
    with update:
        job.optimizer.step()
    job.optimizer.zero_grad()
    passes = -(-len(batch[0]) // rows)
    return Counter({product: times * passes for product, times in inside.found.items()}) + update.found


class _Stamps(Callback):
    """Reads the clock after each step.

    A step reads its own loss and gradient's norm, so no device runs ahead by more than an update.
    """

    def __init__(self, budget: Budget) -> None:
        self.budget, self.times = budget, list[float]()

    def after_step(self, view: View) -> Request:
        self.times.append(self.budget.clock())
        measured, budget = len(self.times) - 1, self.budget
        spent = budget.left == 0.0 and (measured >= _LEAST or budget.over > budget.seconds)
        return Request.STOP if measured and (spent or measured >= _MOST) else Request.NOTHING
