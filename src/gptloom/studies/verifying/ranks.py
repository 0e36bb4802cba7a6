"""The check that several processes train as one does: a short run with two ranks over gloo, beside the same with one."""

import math

import torch
import torch.distributed as dist

from gptloom.studies.verifying.rounding import Impossible, Outcome, worst
from gptloom.studies.verifying.short import STEPS, Record, run_short, settings, workshop
from gptloom.studies.verifying.subject import Subject, gradients, logits
from gptloom.studies.verifying.updates import length
from gptloom.training.run import begin


def two_ranks(subject: Subject) -> Outcome | Impossible:
    """Losses of four steps, and on the validation part between them; without dropout, of which each rank draws its own."""
    if not dist.is_available() or not dist.is_gloo_available():
        return Impossible("this PyTorch comes without gloo")
    with workshop(subject) as (folder, text):
        records = []
        for ranks in (1, 2):
            config = settings(subject, folder, dropout=0.0, ranks=ranks)
            run_short(text, config, folder / f"ranks-{ranks}")
            records.append(Record(folder / f"ranks-{ranks}"))
        fresh = begin(config, subject.bundle.tokenizer, torch.device("cpu")).model.eval()
    one, two = records
    gap = max(abs(a - b) for (_, a), (_, b) in zip(one.losses, two.losses, strict=False))
    # The losses' own rounding; and that of the updates: an error e of a gradient turns AdamW's step by at most 2 rate / |g| times e, and so the
    # loss by 2 rate times the sum of |e|, which is at most the root of the number of parameters times the length of e. Four times
    # that, for the gradient is not the first one's for long. A kink needs no more: it turns a few hundred numbers, not all.
    batch = subject.uneven(time=min(subject.time, config.model.block_size))
    peak = float(logits(fresh, *batch[:-1]).abs().max())
    slope = length(gradients(fresh, batch)) * subject.smooth_tolerance * math.sqrt(fresh.parameter_count())
    tolerance = 4 * subject.logit_tolerance * (1.0 + peak) + 4 * STEPS * 2 * config.train.learning_rate * slope
    return worst([Outcome(gap, tolerance, "losses"), Outcome(float([at for at, _ in one.losses] != [at for at, _ in two.losses]), 0.0, "steps")])
