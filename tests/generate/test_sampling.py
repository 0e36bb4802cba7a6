"""The logit filters, their order, and the sampling; against small, independent references in NumPy."""

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gptloom.config.run import SampleConfig
from gptloom.generate.sampling import choose, draw, keep_likely, keep_min_p, keep_top_k, keep_top_p, penalise, uniforms

rows = hnp.arrays(np.float32, st.integers(2, 40), elements=st.integers(-640, 640).map(lambda n: n / 32))


def one(values) -> torch.Tensor:
    return torch.tensor(np.asarray(values, dtype=np.float32))[None]


def kept(logits: torch.Tensor) -> list[int]:
    return torch.isfinite(logits[0]).nonzero().flatten().tolist()


def softmax(values) -> np.ndarray:
    z = np.exp(np.asarray(values, dtype=np.float64) - np.max(values))
    return z / z.sum()


# --- the filters ----------------------------------------------------------------------------------


@given(values=rows, k=st.integers(1, 50))
def test_top_k_keeps_exactly_k_of_the_largest(values, k):
    out = keep_top_k(one(values), k)
    places = kept(out)
    assert len(places) == min(k, len(values))
    assert sorted(values[places]) == sorted(values)[-len(places) :]
    assert out[0, places].tolist() == values[places].tolist()


def test_top_k_keeps_exactly_k_however_many_are_tied():
    assert len(kept(keep_top_k(torch.zeros(1, 9), 4))) == 4
    assert kept(keep_top_k(one([1, 3, 3, 3, 5]), 1)) == [4]


@given(values=rows, p=st.floats(0.01, 0.99))
def test_top_p_keeps_the_smallest_set_that_reaches_p(values, p):
    out = keep_top_p(one(values), p)
    places, share = kept(out), softmax(values)
    assert len(places) >= 1
    assert share[places].sum() >= p - 1e-5
    assert share[places].sum() - share[places].min() < p + 1e-5
    assert share[places].min() >= max(np.delete(share, places), default=0.0)  # the most likely ones
    assert out[0, places].tolist() == values[places].tolist()


def test_top_p_by_hand():
    logits = torch.tensor([[0.25, 0.5, 0.15, 0.1]]).log()
    for p, places in (
        (0.01, [1]),
        (0.49, [1]),
        (0.51, [0, 1]),
        (0.74, [0, 1]),
        (0.76, [0, 1, 2]),
        (0.95, [0, 1, 2, 3]),
    ):
        assert kept(keep_top_p(logits, p)) == places
    assert kept(keep_top_p(torch.zeros(1, 4), 0.6)) == [0, 1, 2]  # ties go to the lower ids


@pytest.mark.parametrize(
    "logits", [torch.zeros(1, 50_257), torch.linspace(0, 12, 50_257)[None], torch.tensor([[30.0, 0.0]])]
)
def test_top_p_of_one_keeps_everything(logits):
    assert len(kept(keep_likely(logits, SampleConfig(top_p=1.0)))) == logits.shape[1]


def test_top_p_adds_up_a_large_vocabulary_without_losing_count():
    assert len(kept(keep_top_p(torch.zeros(1, 100_000), 0.75))) == pytest.approx(75_000, abs=2)


@given(values=rows, p=st.floats(0.0, 1.0))
def test_min_p_keeps_what_is_likely_enough_beside_the_likeliest(values, p):
    places, share = kept(keep_min_p(one(values), p)), softmax(values)
    assert int(np.argmax(values)) in places
    ratio = share / share.max()
    assert set(np.flatnonzero(ratio > p + 1e-5)) <= set(places) <= set(np.flatnonzero(ratio >= p - 1e-5))


def test_the_penalty_makes_every_seen_token_less_likely():
    """Keskar et al. 2019: a positive score is divided and a negative one multiplied, so that both decrease."""
    logits, seen = torch.tensor([[2.0, -2.0, 0.0, 2.0, -2.0]]), torch.tensor([[True, True, True, False, False]])
    assert penalise(logits, seen, 1.25)[0].tolist() == pytest.approx([1.6, -2.5, 0.0, 2.0, -2.0])


# --- the order ------------------------------------------------------------------------------------


def reference(step: str, z: np.ndarray, settings: dict) -> np.ndarray:
    """One filter on logits in float64; excluded tokens are -inf."""
    if step == "temperature":
        return z / settings["temperature"]
    share, order = softmax(z), np.argsort(-z, kind="stable")
    if step == "top_k":
        keep = np.isin(np.arange(len(z)), order[: settings["top_k"]])
    elif step == "top_p":
        enough = int(np.searchsorted(np.cumsum(share[order]), settings["top_p"])) + 1
        keep = np.isin(np.arange(len(z)), order[:enough])
    else:
        keep = share >= settings["min_p"] * share.max()
    return np.where(keep, z, -np.inf)


def test_the_order_is_temperature_top_k_top_p_min_p():
    """The filters run in the documented order, and every other order would give other tokens.

    The exception is top-k next to temperature: division keeps the ranking.
    """
    documented = ("temperature", "top_k", "top_p", "min_p")
    differs = dict.fromkeys(permutations(documented), False)
    random = np.random.default_rng(0)
    for _ in range(300):
        z = random.normal(0, 2, 10).astype(np.float32)
        settings = {
            "temperature": random.uniform(0.4, 2.5),
            "top_k": int(random.integers(2, 9)),
            "top_p": random.uniform(0.3, 0.95),
            "min_p": random.uniform(0.02, 0.4),
        }
        sets = {}
        for order in differs:
            out = z.astype(np.float64)
            for step in order:
                out = reference(step, out, settings)
            sets[order] = np.flatnonzero(np.isfinite(out)).tolist()
            differs[order] |= sets[order] != sets[documented]
        config = SampleConfig(**settings)
        assert kept(keep_likely(one(z) / config.temperature, config)) == sets[documented]
        drawn = choose(one(z).repeat(64, 1), None, config, (torch.arange(64) + 0.5) / 64)
        assert set(drawn.tolist()) <= set(sets[documented])
    assert [order for order, other in differs.items() if not other] == [
        documented,
        ("top_k", "temperature", "top_p", "min_p"),
    ]


def test_the_penalty_comes_first():
    logits, seen = torch.tensor([[2.0, 1.9, 0.0]]), torch.tensor([[True, False, False]])
    config = SampleConfig(repetition_penalty=1.5, temperature=1.0, top_k=1)
    assert choose(logits, seen, config, torch.tensor([0.5])).item() == 1
    assert choose(logits, seen, config.model_copy(update={"temperature": 0.0}), torch.tensor([0.5])).item() == 1
    assert choose(logits, None, config.model_copy(update={"repetition_penalty": 1.0}), torch.tensor([0.5])).item() == 0


@given(
    rows,
    st.integers(1, 50),
    st.floats(0.001, 1.0),
    st.floats(0.0, 1.0),
    st.floats(0.01, 100),
    st.floats(0, 1, exclude_max=True),
)
def test_some_token_always_stays_and_only_those_that_stay_are_drawn(values, k, p, floor, temperature, u):
    config = SampleConfig(temperature=temperature, top_k=k, top_p=p, min_p=floor)
    # A set that reaches p exactly may differ by a token between float32 and float64.
    places = [kept(keep_likely(logits / temperature, config)) for logits in (one(values), one(values).double())]
    assert all(places)
    assert int(choose(one(values), None, config, torch.tensor([u], dtype=torch.float64))) in {*places[0], *places[1]}


# --- the choice -----------------------------------------------------------------------------------


@given(values=rows)
def test_temperature_zero_takes_the_likeliest_and_the_lowest_id_among_equals(values):
    assert choose(one(values), None, SampleConfig(temperature=0.0), torch.tensor([0.99])).item() == int(
        np.argmax(values)
    )


def test_temperature_zero_among_equals():
    for places in ([1, 3], [0, 5], [2, 3, 4]):
        values = np.zeros(6)
        values[places] = 1.0
        assert choose(one(values), None, SampleConfig(temperature=0.0), torch.tensor([0.99])).item() == places[0]


@pytest.mark.parametrize("temperature", [1e-2, 1e-10, 1e-38, 1e-45, 1e-300, 5e-324])
def test_a_temperature_close_to_zero_takes_the_likeliest(temperature):
    for values in ([3.0, 1.0, 2.5], [-3.0, -1.0, -2.5], [0.0, 5.0, -5.0]):
        assert choose(one(values), None, SampleConfig(temperature=temperature), torch.tensor([0.5])).item() == int(
            np.argmax(values)
        )


def test_a_very_high_temperature_makes_all_tokens_alike():
    for temperature in (1e10, 1e300):
        drawn = choose(
            one([9.0, -9.0, 0.0, 4.0]).repeat(8, 1),
            None,
            SampleConfig(temperature=temperature),
            (torch.arange(8) + 0.5) / 8,
        )
        assert drawn.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


@given(values=rows)
def test_the_draw_is_the_inverse_of_the_cumulative_distribution(values):
    """With n evenly spaced numbers, each token occurs n times its probability (± 1), in the order of ids."""
    n = 200
    drawn = draw(one(values).repeat(n, 1), (torch.arange(n, dtype=torch.float64) + 0.5) / n)
    assert drawn.tolist() == sorted(drawn.tolist())
    counts = np.bincount(drawn.numpy(), minlength=len(values))
    assert np.abs(counts - n * softmax(values)).max() <= 1 + 1e-6


@pytest.mark.parametrize("u", [0.0, 5e-324, 1e-17, 0.5, 1 - 2**-24, 1 - 2**-53])
def test_a_token_of_probability_zero_is_never_drawn(u):
    never = float("-inf")
    for values, allowed in (
        ([never, 0.0, never, 0.0, never], {1, 3}),
        ([never, never, 1.0], {2}),
        ([1.0, never, never], {0}),
        ([-2000.0, 0.0, -2000.0], {1}),
        ([never, *[0.1] * 7, never], set(range(1, 8))),
    ):
        chosen = int(draw(one(values), torch.tensor([u], dtype=torch.float64)))
        assert chosen in allowed
        assert chosen == (min(allowed) if u < 0.01 else max(allowed) if u > 0.99 else chosen)


@given(
    values=hnp.arrays(np.float32, st.integers(1, 30), elements=st.just(float("-inf")) | st.floats(-5, 5, width=32)),
    u=st.floats(0, 1, exclude_max=True),
)
def test_whatever_is_out_stays_out(values, u):
    if np.isfinite(values).any():
        assert np.isfinite(values[int(draw(one(values), torch.tensor([u], dtype=torch.float64)))])


def test_each_row_is_chosen_by_its_own_logits_and_number():
    logits = torch.tensor([[0.0, 0.0], [0.0, 0.0], [9.0, -9.0], [-9.0, 9.0]])
    assert choose(logits, None, SampleConfig(temperature=1.0), torch.tensor([0.2, 0.8, 0.8, 0.2])).tolist() == [
        0,
        1,
        0,
        1,
    ]
    filtered = keep_likely(logits, SampleConfig(top_p=0.4, top_k=1, min_p=0.9))
    assert torch.isfinite(filtered).sum(-1).tolist() == [1, 1, 1, 1]
    assert filtered[2:].argmax(-1).tolist() == [0, 1]


# --- the numbers ----------------------------------------------------------------------------------


def test_a_row_s_numbers_depend_on_the_seed_and_the_row_alone():
    def numbers(seed, sample):
        draw = uniforms(seed, sample)
        return [draw() for _ in range(3)]

    found = {(seed, sample): numbers(seed, sample) for seed in (7, 8) for sample in range(3)}
    assert all(numbers(*key) == drawn for key, drawn in reversed(found.items()))
    assert len({u for drawn in found.values() for u in drawn}) == 18
    assert all(0 <= u < 1 for drawn in found.values() for u in drawn)


def test_the_numbers_are_uniform():
    streams = [uniforms(1, sample) for sample in range(4)]
    drawn = np.array([[draw() for draw in streams] for _ in range(500)]).ravel()
    deviation = np.abs(np.sort(drawn) - (np.arange(2000) + 0.5) / 2000).max()
    assert deviation < 1.63 / 2000**0.5  # Kolmogorov-Smirnov at 1 percent; the seed is fixed
