"""The learning rate and the number of steps, against their formulas."""

import math
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptloom.checkpoint.state import Horizon
from gptloom.config.run import TrainConfig
from gptloom.training.schedule import learning_rate, make_horizon


def rates(total=100, **fields):
    config = TrainConfig(**{"learning_rate": 2.0, "warmup_steps": 10, "final_lr_fraction": 0.1, **fields})
    return [learning_rate(config, step, total) for step in range(total + 1)]


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "wsd"])
def test_the_warm_up_is_linear_and_ends_at_the_peak(schedule):
    assert rates(schedule=schedule)[:11] == pytest.approx([*(0.2 * n for n in range(1, 11)), 2.0])
    assert rates(schedule=schedule, warmup_steps=0)[0] == 2.0
    assert rates(8, schedule=schedule, warmup_steps=50)[:5] == pytest.approx(
        [0.5, 1.0, 1.5, 2.0, 2.0]
    )  # at most half the run


def test_the_schedules_by_their_formulas():
    low, span = 0.2, 1.8
    assert rates(schedule="constant")[10:] == [2.0] * 91
    assert rates(schedule="linear")[10:] == pytest.approx([low + span * (100 - n) / 90 for n in range(10, 101)])
    assert rates(schedule="cosine")[10:] == pytest.approx(
        [low + span * (1 + math.cos(math.pi * (n - 10) / 90)) / 2 for n in range(10, 101)]
    )
    wsd = rates(schedule="wsd", warmup_steps=0, decay_fraction=0.25)
    assert wsd[:76] == [2.0] * 76
    assert wsd[75:] == pytest.approx([low + span * (100 - n) / 25 for n in range(75, 101)])
    assert rates(schedule="wsd", decay_fraction=1.0)[10:] == pytest.approx(rates(schedule="linear")[10:])


schedules = st.builds(
    TrainConfig,
    learning_rate=st.floats(1e-6, 10),
    schedule=st.sampled_from(["constant", "linear", "cosine", "wsd"]),
    warmup_steps=st.integers(0, 300),
    final_lr_fraction=st.floats(0, 1),
    decay_fraction=st.floats(0.01, 1),
)


@given(schedules, st.integers(1, 500))
def test_the_rate_stays_between_zero_and_the_peak_and_never_rises_after_the_warm_up(config, total):
    values = [learning_rate(config, step, total) for step in range(total + 1)]
    slack = 1e-9 * config.learning_rate
    assert min(values) >= 0
    assert max(values) <= config.learning_rate + slack
    warm = min(config.warmup_steps, total // 2)
    assert all(a < b for a, b in pairwise(values[:warm]))
    assert all(a >= b - slack for a, b in pairwise(values[warm:]))
    assert values[warm] == pytest.approx(config.learning_rate)
    end = 1.0 if config.schedule == "constant" else config.final_lr_fraction
    assert values[total] == pytest.approx(config.learning_rate * end, abs=1e-12)
    assert learning_rate(config, total + 7, total) == pytest.approx(values[total])  # and stays there


def test_a_known_length_is_not_planned():
    horizon = Horizon(None, 40)
    horizon.plan(3, 1.0, 1.0)
    assert (horizon.total, horizon.plans) == (40, [])
    assert not any(horizon.due(step) for step in range(50))


def test_a_time_budget_is_spent_at_the_measured_pace():
    horizon = Horizon(60.0, 1_000_000)
    horizon.plan(1, 2.0, 0.5)  # 58 s left
    assert horizon.total == 1 + 116
    horizon.plan(50, 40.0, 1.0)  # it has become slower
    assert horizon.total == 50 + 20
    horizon.plan(70, 61.0, 1.0)  # and the budget is spent
    assert horizon.total == 70
    assert horizon.plans == [(1, 117), (50, 70), (70, 70)]
    horizon.plan(0, 99.0, 1.0)
    assert horizon.total == 1  # a run has at least one step
    horizon.plan(1, 0.0, 0.0)  # a clock too coarse to see a step
    assert math.isfinite(horizon.total)


def test_planning_is_due_often_at_first_and_then_a_hundred_times():
    horizon = Horizon(60.0, 1000)
    due = [step for step in range(1001) if horizon.due(step)]
    assert due[:6] == [1, 2, 4, 8, 10, 16]
    assert [step for step in due if step > 512] == list(range(520, 1001, 10))
    assert Horizon(60.0, 30).due(17)


def test_the_horizon_follows_the_configuration():
    assert make_horizon(TrainConfig(steps=7), Fraction(100)) == Horizon(None, 7)
    assert make_horizon(TrainConfig(minutes=0.5), Fraction(100)).seconds == 30.0
    assert make_horizon(TrainConfig(epochs=2.5), Fraction(1000, 30)) == Horizon(None, 84)
    assert make_horizon(TrainConfig(), Fraction(100)) == Horizon(None, 100)
    assert make_horizon(TrainConfig(epochs=0.1), Fraction(1000, 10)) == Horizon(None, 10)  # 0.1 is no binary fraction
    assert make_horizon(TrainConfig(), Fraction(5, 1000)) == Horizon(None, 1)


def test_the_inverse_root_schedule_rises_to_its_peak_and_falls_by_the_root():
    config = TrainConfig(schedule="inverse-root", warmup_steps=10, learning_rate=1.0, final_lr_fraction=0.0)
    rates = [learning_rate(config, step, 1000) for step in range(1000)]
    assert max(rates) == rates[9] == 1.0 and rates[4] == 0.5
    assert rates[39] == pytest.approx(0.5) and rates[999] == pytest.approx(0.1)
