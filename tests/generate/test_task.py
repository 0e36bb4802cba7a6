"""Evaluation: the cross-entropy by hand, and a score in its units."""

import math
from itertools import product

import pytest
import torch

from gptloom.config.run import IGNORE_INDEX
from gptloom.generate.task import Score, evaluate
from gptloom.model.loss import Objective
from model_helpers import CONFIGS, SMALL, build, random_ids

T = SMALL["block_size"]


def test_evaluation_sums_the_cross_entropy_and_draws_nothing():
    model = build(CONFIGS["gpt2"]).train()
    batches = [(random_ids(3, T, seed=n), random_ids(3, T, seed=n + 9)) for n in range(3)]
    batches[2][1][1, 4:] = IGNORE_INDEX
    before = torch.get_rng_state()
    score = evaluate(Objective(model), batches, device=torch.device("cpu"), byte_count=123)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    model.eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for inputs, targets in batches:
            logprobs = model(inputs).double().log_softmax(-1)
            for b, t in product(range(3), range(T)):
                if targets[b, t] != IGNORE_INDEX:
                    total, count = total - float(logprobs[b, t, targets[b, t]]), count + 1
    assert count == 3 * 3 * T - (T - 4)
    assert (score.tokens, score.bytes) == (count, 123)
    assert score.nats == pytest.approx(total, rel=1e-6)


def test_a_score_in_its_three_units():
    score = Score(nats=100.0, tokens=50, bytes=80)
    assert score.loss == 2.0
    assert score.perplexity == pytest.approx(7.389056, rel=1e-6)
    assert score.bpb == pytest.approx(100 / 80 / 0.693147181, rel=1e-6)
    assert Score(1.0, 1).bpb is None
    assert math.isnan(Score(0.0, 0).loss)  # nothing was predicted
    assert Score(1e9, 1).perplexity < float("inf")
