"""Rows of unequal length: stepped as the reference steps them, and written as each alone, however they come and go."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from axes import every_config, every_recurrent
from fast_helpers import expected, read
from gptloom import fast
from gptloom.config.model import ModelConfig
from gptloom.config.run import SampleConfig
from gptloom.fast import decode
from gptloom.fast.decode import Reference, Stepper
from gptloom.fast.decode_torch import MANY
from gptloom.generate.batch import DecodeBatch
from gptloom.generate.seq2seq import condition
from gptloom.model.build import build_model
from model_helpers import CONFIGS, SMALL, build, random_ids

T = SMALL["block_size"]


# --- a step ---------------------------------------------------------------------------------------


@every_config
@pytest.mark.parametrize("rows", [2, 5, MANY + 1])
def test_steps_of_uneven_rows_are_the_reference_s_in_float64(name, rows):
    model = build(CONFIGS[name]).double()
    assert fast.why_not_decode(model) is None
    texts = [random_ids(1, 1 + (3 * row) % (T - 3), seed=row)[0].tolist() for row in range(rows)]
    stepper = Stepper(model)
    assert stepper._trusts_uneven(rows)
    assert stepper.compare_uneven(rows) < 1e-13
    quick, plain = read(model, texts, stepper), read(model, texts)
    for step in range(3):
        ids = [(row + step) % 13 for row in range(rows)]
        texts = [[*text, one] for text, one in zip(texts, ids, strict=True)]
        found = stepper.uneven(ids, quick)
        torch.testing.assert_close(found, Reference(model).uneven(ids, plain), atol=1e-11, rtol=1e-11)
        torch.testing.assert_close(found, expected(model, texts), atol=1e-11, rtol=1e-11)
        assert quick.lengths == plain.lengths == [len(text) for text in texts]


@every_config
@pytest.mark.parametrize(("rows", "singles"), [(3, 4), (3, 0), (MANY, 0)])
def test_rows_that_do_not_go_on_leave_the_others_alone(name, rows, singles, monkeypatch):
    """One that is full and one that is empty are passed over, and then read anew; all ways of a float32 model."""
    monkeypatch.setattr(decode, "SINGLES", singles)
    model = build(CONFIGS[name])
    stepper, going = Stepper(model), list(range(2, rows))
    texts = [random_ids(1, n, seed=n)[0].tolist() for n in (T, T, *range(3, 1 + rows))]
    state = read(model, texts, stepper)
    state.lengths[1] = 0
    texts = [[*text[: T - 1], 5] for text in texts]
    found = stepper.uneven([5] * rows, state, going)
    torch.testing.assert_close(found[2:], expected(model, texts)[2:], atol=2e-5, rtol=1e-5)
    assert state.lengths == [T, 0, *(len(text) for text in texts[2:])]
    part = state.part(0, 2)
    part.clear()
    new = [[1, 2, 3], [4, 5]]
    torch.testing.assert_close(stepper.read(new, part), expected(model, new), atol=2e-5, rtol=1e-5)
    state.lengths[:2] = part.lengths
    texts = [[*text, 6] for text in (*new, *texts[2:])]
    torch.testing.assert_close(stepper.uneven([6] * rows, state), expected(model, texts), atol=2e-5, rtol=1e-5)


# --- rows that come and go ------------------------------------------------------------------------

TRIPS = st.lists(
    st.tuples(
        st.integers(0, 12),  # the step at which the row comes
        st.integers(1, 2 * T),  # tokens of its prompt
        st.integers(1, 24),  # tokens to write
        st.none() | st.integers(0, 12),  # steps after which it is dropped
        st.sampled_from([0.0, 1.0, 1.3]),
        st.sampled_from([1.0, 1.4]),
    ),
    min_size=1,
    max_size=12,
)


def come_and_go(model, trips, **options) -> list[list[int]]:
    """The texts of rows that are added and dropped on the way."""
    batch, names, texts = DecodeBatch(model, end=7, **options), {}, [[] for _ in trips]
    for step in range(60):
        for number, (start, length, tokens, stay, temperature, penalty) in enumerate(trips):
            if step == start:
                prompt = random_ids(1, length, seed=length)[0].tolist()
                config = SampleConfig(tokens=tokens, temperature=temperature, repetition_penalty=penalty)
                names[batch.add(prompt, config, sample=number)] = number
            for name in [name for name, one in names.items() if one == number and stay and step == start + stay]:
                batch.drop(name)
        for name, token in batch.step().items():
            texts[names[name]].append(token.id)
        assert len(batch.texts) == len(batch._rows) == len(batch._names)
    return texts


@pytest.mark.parametrize("name", ["gpt2", "modern", "ngrams", "mean-post", "bigram"])
@settings(max_examples=15)
@given(trips=TRIPS)
def test_a_row_writes_what_it_writes_alone(name, trips):
    model = build(CONFIGS[name]).double()  # no draw falls within rounding of a border
    together = come_and_go(model, trips)
    for number, trip in enumerate(trips):
        _, _, tokens, stay, *_ = trip
        absent = (99, 1, 1, None, 1.0, 1.0)
        alone = come_and_go(model, [trip if other == number else absent for other in range(len(trips))])
        assert together[number] == alone[number]
        assert len(alone[number]) <= min(tokens, stay or tokens)
        assert len(alone[number]) == min(tokens, stay or tokens) or alone[number][-1] == 7


@settings(max_examples=10)
@given(trips=TRIPS)
def test_cached_rows_come_and_go_as_uncached_ones(trips):
    model = build(CONFIGS["ngrams"]).double()
    assert come_and_go(model, trips) == come_and_go(model, trips, cached=False)


@every_recurrent
def test_rows_of_recurrent_models_come_and_go(architecture):
    model = build_model(ModelConfig(**SMALL, architecture=architecture)).double().eval()
    trips = [(0, 3, 20, None, 1.0, 1.0), (0, 25, 20, 5, 1.0, 1.0), (4, 1, 9, None, 1.0, 1.0), (7, 8, 9, 2, 1.0, 1.0)]
    assert come_and_go(model, trips) == come_and_go(model, trips, cached=False)


@pytest.mark.parametrize("cached", [True, False])
def test_translations_come_and_go_each_with_its_own_source(cached):
    model = build_model(ModelConfig(**SMALL, architecture="encoder-decoder")).double().eval()
    sources = [random_ids(1, n, seed=n)[0].tolist() for n in (3, 8, 5, 4)]

    def written(numbers: list[int], late: bool) -> dict[int, list[int]]:
        batch, texts = DecodeBatch(condition(model, [sources[n] for n in numbers]), cached=cached), {}
        for place in range(len(numbers)):
            if late and place == 1:
                batch.step()
            batch.add([0], SampleConfig(tokens=T - 1, temperature=0.0))
            if late and place == 2:
                batch.step()
                batch.drop(0)
        while tokens := batch.step():
            for row, token in tokens.items():
                texts.setdefault(numbers[row], []).append(token.id)
        return texts

    together, alone = written([0, 1, 2, 3], True), {n: written([n], False)[n] for n in range(4)}
    assert together.keys() == {1, 2, 3}
    for number, text in together.items():
        assert alone[number][-len(text) :] == text and len(text) >= T - 2


@pytest.mark.parametrize("name", ["gpt2", "modern", "ngrams", "mean"])
def test_a_few_rows_of_unequal_length_have_the_bits_of_each_alone(name):
    """Over several slides; each is read by itself, and stepped by the operations of a single row."""
    model, lengths = build(CONFIGS[name]), (2, 5, 9)
    texts, new = [random_ids(1, n, seed=n)[0].tolist() for n in lengths], random_ids(3, 16, seed=1).T.tolist()

    def scores(texts, places):
        batch, found = DecodeBatch(model), []
        batch.extend(texts, SampleConfig(tokens=16))
        for ids in new:
            found.append(batch.logits().clone())
            batch.append([ids[place] for place in places])
        return torch.stack(found, dim=1)

    together = scores(texts, [0, 1, 2])
    for row, text in enumerate(texts):
        assert torch.equal(together[row], scores([text], [row])[0])


def test_a_drop_copies_one_row_and_an_addition_seldom_more():
    """Memory is made anew when there are more rows than ever before, and then for twice as many."""
    batch, made = DecodeBatch(build(CONFIGS["gpt2"]), compare=False), []
    init_cache = batch.model.init_cache
    batch.model.init_cache = lambda rows, length: (made.append((rows, length)), init_cache(rows, length))[1]
    batch.extend([[1, 2]] * 3, SampleConfig(tokens=9))
    batch.step()
    batch.drop(1)
    batch.step()
    for tokens in (9, 8, 3, 2):
        batch.add([3] * 2, SampleConfig(tokens=tokens))
        batch.step()
    assert made == [(3, T), (6, T)]
    assert batch._state.lengths == [7, 7, 5, 4, 3, 2]


def test_rows_have_settings_and_details_of_their_own():
    model, prompt = build(CONFIGS["modern"]), [1, 2, 3]
    configs = [SampleConfig(tokens=6, temperature=t, top_k=k) for t, k in ((0.0, None), (1.0, None), (1.0, 3))]
    batch = DecodeBatch(model)
    rows = [batch.add(prompt, config, details=n or None, sample=0) for n, config in enumerate(configs)]
    texts = {row: [] for row in rows}
    while tokens := batch.step():
        for row, token in tokens.items():
            texts[row].append(token.id)
            assert len(token.alternatives) == row
            assert (token.logprob < 0) == (row > 0)
    for row, config in zip(rows, configs, strict=True):
        alone = DecodeBatch(model)
        alone.add(prompt, config)
        assert [step[0].id for step in iter(alone.step, {})] == texts[row]


# --- the comparison with the reference ------------------------------------------------------------


def test_a_model_is_compared_once_and_again_after_its_weights_change(monkeypatch):
    compared = []
    monkeypatch.setattr(Stepper, "compare", lambda stepper: compared.append(stepper.model) or 0.0)
    model, other = build(CONFIGS["gpt2"]), build(CONFIGS["gpt2"])
    for one in (model, model, other, model):
        assert isinstance(decode.make_stepper(one), Stepper)
    assert compared == [model, other]
    with torch.no_grad():
        model.head.weight.add_(0.1)
    decode.make_stepper(model)
    assert compared == [model, other, model]


def test_a_comparison_that_fails_is_never_remembered(monkeypatch):
    model = build(CONFIGS["gpt2"])
    monkeypatch.setattr(Stepper, "compare", lambda stepper: 1.0)
    for _ in range(2):
        assert isinstance(decode.make_stepper(model), Reference)
    monkeypatch.undo()
    assert isinstance(decode.make_stepper(model), Stepper)
