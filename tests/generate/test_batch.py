"""Writing: a text is a function of its prompt, the seed and its row.

With or without a cache, side by side or alone, sliding or not.
"""

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from axes import every_config
from gptloom.config.model import ModelConfig
from gptloom.config.run import SampleConfig
from gptloom.generate.batch import DecodeBatch, Token, window_start
from gptloom.generate.seq2seq import beam_search
from gptloom.model.base import evaluating
from gptloom.model.transformer import Decoder
from model_helpers import CONFIGS, SMALL, build, random_ids

V, T = SMALL["vocab_size"], SMALL["block_size"]
PROMPTS = [random_ids(1, n, seed=n)[0].tolist() for n in (1, 4, T, 2 * T + 3)]

every_mixer = pytest.mark.parametrize("name", ["modern", "mean", "gpt2"])


def last_logits(model: Decoder, row: list[int]) -> torch.Tensor:
    """What follows a text, from one plain forward call on its view."""
    view = row[window_start(len(row), model.config.block_size) :]
    with torch.no_grad():
        return model(torch.tensor([view]))[0, -1]


def batch_of(model: Decoder, texts: list[list[int]], tokens: int, **options) -> DecodeBatch:
    """A batch for somebody who chooses the tokens himself."""
    batch = DecodeBatch(model, **options)
    assert batch.extend(texts, SampleConfig(tokens=tokens)) == list(range(len(texts)))
    return batch


def write(model: Decoder, prompts: list[list[int]], config: SampleConfig, **options) -> list[list[int]]:
    batch = DecodeBatch(model, **options)
    batch.extend(prompts, config)
    new = [list[int]() for _ in prompts]
    while tokens := batch.step():
        for row, token in tokens.items():
            new[row].append(token.id)
    return new


def table_model(probabilities: list[list[float]]) -> Decoder:
    """A bigram model with these rows of next-token probabilities."""
    model = Decoder(ModelConfig(vocab_size=len(probabilities), block_size=8, n_layer=0, positions="none", head="none"))
    with torch.no_grad():
        model.token_table.weight.copy_(torch.tensor(probabilities).log())
    return model.eval()


# --- the window -----------------------------------------------------------------------------------


@given(block=st.integers(1, 300), length=st.integers(1, 2000))
def test_the_window_is_never_too_long_nor_much_too_short_and_only_moves_on(block, length):
    start, after = window_start(length, block), window_start(length + 1, block)
    view = length - start
    assert 1 <= view <= block
    assert start == 0 if length <= block else 2 * view >= block
    assert after - start in (0, max(1, block // 2))
    assert after == start or view == block  # it moves only when it is full


# --- rows -----------------------------------------------------------------------------------------


@every_config
@pytest.mark.parametrize("cached", [True, False])
def test_ragged_rows_give_the_logits_of_each_text_by_itself(name, cached):
    """Over several slides of the window, with rows that slide at different times."""
    model, new = build(CONFIGS[name]), random_ids(len(PROMPTS), 14, seed=1)
    rows = batch_of(model, PROMPTS, 14, cached=cached)
    texts = [list(prompt) for prompt in PROMPTS]
    for step in range(14):
        logits = rows.logits()
        for row, text in enumerate(texts):
            torch.testing.assert_close(logits[row], last_logits(model, text), atol=2e-5, rtol=1e-5)
            text.append(int(new[row, step]))
        rows.append(new[:, step].tolist())
    assert rows.texts == texts


@every_config
def test_rows_of_equal_length_give_the_logits_of_each_text_by_itself(name):
    """They stay equal, so that every step but the slides takes the short way; then one is dropped."""
    model, new = build(CONFIGS[name]), random_ids(3, 14, seed=1)
    texts = random_ids(3, 4, seed=2).tolist()
    rows = batch_of(model, texts, 14)
    for step in range(14):
        logits = rows.logits()
        for row, text in enumerate(texts):
            torch.testing.assert_close(logits[row], last_logits(model, text), atol=2e-5, rtol=1e-5)
            text.append(int(new[row, step]))
        rows.append([text[-1] for text in texts])
        if step == 10:
            rows.take([2, 0])
            texts = [texts[2], texts[0]]


@every_mixer
def test_rows_can_be_dropped_and_repeated_on_the_way(name):
    model = build(CONFIGS[name])
    cached, uncached = (batch_of(model, PROMPTS, 12, cached=c) for c in (True, False))
    for step in range(12):
        torch.testing.assert_close(cached.logits(), uncached.logits(), atol=2e-5, rtol=1e-5)
        for rows in (cached, uncached):
            rows.append([step % V] * len(rows.texts))
            if step == 3:
                rows.take([3, 0, 3, 1])
            if step == 7:
                rows.take([2, 1])


@every_mixer
def test_asking_twice_for_the_logits_gives_the_same_answer(name):
    rows = batch_of(build(CONFIGS[name]), PROMPTS, 4)
    for _ in range(3):
        first = rows.logits().clone()
        torch.testing.assert_close(rows.logits(), first, atol=2e-5, rtol=1e-5)
        rows.append([1] * len(PROMPTS))


def test_a_cache_is_rebuilt_only_when_its_row_slides(monkeypatch):
    model, read = build(CONFIGS["gpt2"]), []
    rows = batch_of(model, [[1] * (T - 1), [1] * (T - 3)], 4 * T)
    whole = rows.stepper.read
    monkeypatch.setattr(rows.stepper, "read", lambda views, state: (read.append(len(views)), whole(views, state))[1])
    for _ in range(12):
        rows.logits()
        rows.append([2, 3])
    # Both at first; then the longer one at lengths 11 and 16, the shorter one at 11 and 16, two steps later each.
    assert read == [2, 1, 1, 1, 1]


def test_a_state_has_room_for_what_will_be_written_and_no_more():
    model = build(CONFIGS["gpt2"])
    for texts, tokens, capacity in (([[1, 2]], 3, 5), ([[1, 2], [1] * 8], 30, T)):
        batch = batch_of(model, texts, tokens)
        batch.logits()
        assert batch._state.capacity == capacity


@pytest.mark.parametrize("prompts", [[[]], [[1], []]])
def test_a_row_needs_a_token_to_go_on_from(prompts):
    with pytest.raises(ValueError, match="at least one token"):
        batch_of(build(CONFIGS["gpt2"]), prompts, 1)


def test_prompts_are_copied():
    prompt = [1, 2, 3]
    write(build(CONFIGS["gpt2"]), [prompt], SampleConfig(tokens=3))
    assert prompt == [1, 2, 3]


# --- generation -----------------------------------------------------------------------------------


@every_config
def test_cached_and_uncached_texts_are_equal(name):
    model, config = build(CONFIGS[name]), SampleConfig(tokens=15, temperature=1.0, top_k=6, seed=5)
    assert write(model, PROMPTS, config) == write(model, PROMPTS, config, cached=False)


@pytest.mark.parametrize("name", ["modern", "mean", "bigram"])
def test_a_text_does_not_depend_on_its_neighbours(name):
    """Row 0 alone, beside others, and beside others that end early; and row 2 when row 0 ends early."""
    model, config = build(CONFIGS[name]), SampleConfig(tokens=16, temperature=1.2, repetition_penalty=1.3)
    alone = write(model, PROMPTS[1:2], config)[0]
    for neighbours in (PROMPTS[2:3], PROMPTS, [[3], [4], [5]]):
        batch, text = DecodeBatch(model), []
        batch.extend([PROMPTS[1], *neighbours], config)
        while tokens := batch.step():
            text.append(tokens[0].id)
            if len(text) == 5:
                batch.drop(1)
        assert text == alone
    batch, text = DecodeBatch(model), []
    batch.extend(PROMPTS, config)
    while tokens := batch.step():
        text.append(tokens[2].id)
        batch.drop(0)
    assert text == write(model, PROMPTS, config)[2]


def test_the_seed_and_the_row_decide_the_draws():
    model = build(CONFIGS["modern"])
    first, again, other = (
        write(model, [[1], [1], [1]], SampleConfig(tokens=20, temperature=1.5, seed=seed)) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other
    assert first[0] != first[1] != first[2]
    assert write(model, [[1], [1]], SampleConfig(tokens=20, temperature=1.5, seed=1)) == first[:2]
    cold = [write(model, [[1], [1]], SampleConfig(tokens=20, temperature=0.0, seed=seed)) for seed in (1, 2)]
    assert cold[0] == cold[1]
    assert cold[0][0] == cold[0][1]


def test_drawing_leaves_torch_s_generator_alone():
    before = torch.get_rng_state()
    write(build(CONFIGS["gpt2"]).train(), PROMPTS, SampleConfig(tokens=5))
    assert torch.equal(torch.get_rng_state(), before)


def test_draws_follow_the_model_s_distribution():
    model = table_model([[0.5, 0.3, 0.2]] * 3)
    new = write(model, [[0]] * 2000, SampleConfig(tokens=1, temperature=1.0))
    shares = torch.bincount(torch.tensor(new).flatten(), minlength=3) / 2000
    assert shares.tolist() == pytest.approx([0.5, 0.3, 0.2], abs=0.045)  # four standard deviations; the seed is fixed


def test_generation_stops_at_the_budget():
    model = build(CONFIGS["gpt2"])
    batch = DecodeBatch(model)
    for tokens, prompt in enumerate(PROMPTS, 1):
        batch.add(prompt, SampleConfig(tokens=tokens))
    assert batch.step().keys() == {0, 1, 2, 3}
    assert batch.ended == [0]
    assert [len(batch.step()) for _ in range(5)] == [3, 2, 1, 0, 0]


def test_an_end_of_text_ends_its_row_and_no_other():
    """Token 0 follows 2, 2 follows 1; 3 follows itself."""
    model = table_model([[0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])
    assert write(model, [[1], [3], [2]], SampleConfig(tokens=4), end=0) == [[2, 0], [3, 3, 3, 3], [0]]
    assert write(model, [[1], [3], [2]], SampleConfig(tokens=4)) == [[2, 0, 1, 2], [3, 3, 3, 3], [0, 1, 2, 0]]
    assert write(model, [[1], [2]], SampleConfig(tokens=9), end=0) == [[2, 0], [0]]  # all have ended before the budget
    assert write(model, [[0]], SampleConfig(tokens=2), end=0) == [[1, 2]]  # an end of text in the prompt ends nothing


def test_a_row_can_be_ended_at_any_time():
    generation = batch_of(table_model([[0.5, 0.5]] * 2), [[0], [1], [0]], 9)
    assert sorted(generation.step()) == [0, 1, 2]
    generation.drop(1)
    generation.drop(1)
    assert sorted(generation.step()) == [0, 2]
    generation.drop(0)
    assert sorted(generation.step()) == [2]
    generation.drop(2)
    assert generation.step() == {}


@pytest.mark.parametrize("name", ["gpt2", "modern"])
def test_details_are_the_model_s_own_probabilities(name):
    """Before penalty, temperature and filters; also for rows that slide and after a row has ended."""
    model = build(CONFIGS[name])
    config = SampleConfig(tokens=12, temperature=2.0, top_k=5, repetition_penalty=1.5)
    generation, texts = DecodeBatch(model), [list(prompt) for prompt in PROMPTS]
    generation.extend(PROMPTS, config, details=4)
    for step in range(12):
        for row, token in generation.step().items():
            logprobs = last_logits(model, texts[row]).log_softmax(-1)
            assert token.logprob == pytest.approx(float(logprobs[token.id]), abs=1e-4)
            order = logprobs.argsort(descending=True).tolist()
            assert token.rank == order.index(token.id)
            assert [one for one, _ in token.alternatives] == order[:4]
            assert [p for _, p in token.alternatives] == pytest.approx(logprobs[order[:4]].tolist(), abs=1e-4)
            texts[row].append(token.id)
        if step == 4:
            generation.drop(0)
    assert len(texts[0]) == len(PROMPTS[0]) + 5


def test_the_number_of_alternatives_may_be_anything():
    model = table_model([[0.7, 0.3]] * 2)
    for details, expected in ((0, 0), (1, 1), (9, 2)):
        batch = DecodeBatch(model)
        batch.add([0], SampleConfig(tokens=1), details=details)
        token = batch.step()[0]
        assert len(token.alternatives) == expected
        assert token.logprob < 0
    batch.add([0], SampleConfig(tokens=1, temperature=0.0))
    assert batch.step() == {1: Token(0)}


def test_the_repetition_penalty_counts_what_is_in_view():
    """All but one of the tokens in view are penalised out of the way."""
    model = table_model([[0.3, 0.25, 0.25, 0.2]] * 4)
    strong = SampleConfig(tokens=3, temperature=0.0, repetition_penalty=50.0)
    assert write(model, [[0]], strong) == [[1, 2, 3]]
    # the first token, 3, has left the view of 8
    assert write(model, [[3, 0, 1, 2, 0, 1, 2, 0, 1]], strong.model_copy(update={"tokens": 1})) == [[3]]


# --- dropout --------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_off_while_writing_and_back_afterwards(training):
    def results():
        found = beam_search(model, [1, 2], SampleConfig(tokens=3, beams=3))
        batch = DecodeBatch(model)
        batch.extend(PROMPTS, SampleConfig(tokens=1), details=2)
        return [*batch.step().values()], found

    model = build(CONFIGS["gpt2"])
    expected = results()
    model.train(training)
    assert results() == expected
    assert model.training == training
    assert model.blocks[0].training == training


def test_training_mode_comes_back_after_an_error():
    model = build(CONFIGS["gpt2"]).train()
    with pytest.raises(KeyError), evaluating(model):
        assert not model.training
        raise KeyError
    assert model.training


def test_a_part_that_was_frozen_stays_so():
    model = build(CONFIGS["gpt2"]).train()
    model.blocks[0].eval()
    with evaluating(model):
        pass
    assert not model.blocks[0].training


# --- beam search ----------------------------------------------------------------------------------


def brute_force(
    model: Decoder, prompt: list[int], tokens: int, end: int | None, length_penalty: float
) -> list[tuple[list[int], float]]:
    """Every continuation that ends, or is `tokens` long, with its score; best first."""
    found = {}
    for path in product(range(model.config.vocab_size), repeat=tokens):
        path = list(path[: path.index(end) + 1] if end in path else path)
        total = 0.0
        for place, one in enumerate(path):
            total += float(last_logits(model, prompt + path[:place]).double().log_softmax(-1)[one])
        found[tuple(path)] = total / len(path) ** length_penalty
    return sorted(((list(path), score) for path, score in found.items()), key=lambda pair: -pair[1])


@pytest.mark.parametrize("end", [None, 2])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("cached", [True, False])
def test_a_beam_as_wide_as_the_tree_finds_the_best_of_all(end, length_penalty, cached):
    model = build(ModelConfig(vocab_size=3, block_size=6, n_layer=1, n_head=2, n_embd=16, positions="rotary"))
    config = SampleConfig(tokens=4, beams=81, length_penalty=length_penalty)
    found = beam_search(model, [0, 1, 1, 0], config, end=end, cached=cached)
    expected = brute_force(model, [0, 1, 1, 0], 4, end, length_penalty)
    assert [ids for ids, _ in found] == [ids for ids, _ in expected]
    assert [score for _, score in found] == pytest.approx([score for _, score in expected], abs=1e-5)


def score_of(model: Decoder, prompt: list[int], ids: list[int]) -> float:
    """Mean log-probability of a continuation, token by token."""
    return sum(last_logits(model, prompt + ids[:n]).log_softmax(-1)[one].item() for n, one in enumerate(ids)) / len(ids)


@pytest.mark.parametrize("name", ["modern", "mean", "gpt2", "bigram"])
def test_one_beam_is_greedy_unless_ending_is_better(name):
    model = build(CONFIGS[name])
    for end in (None, 3, 5, 7):
        greedy = write(model, PROMPTS[1:2], SampleConfig(tokens=12, temperature=0.0), end=end)[0]
        (ids, score), *others = beam_search(model, PROMPTS[1], SampleConfig(tokens=12), end=end)
        assert not others
        assert score >= score_of(model, PROMPTS[1], greedy) - 1e-5
        assert end is not None or ids == greedy


@every_mixer
def test_cached_and_uncached_beams_are_equal_and_their_scores_true(name):
    model, config = build(CONFIGS[name]), SampleConfig(tokens=14, beams=3)
    cached, uncached = (beam_search(model, PROMPTS[2], config, end=0, cached=c) for c in (True, False))
    assert [ids for ids, _ in cached] == [ids for ids, _ in uncached]
    assert len(cached) == len({tuple(ids) for ids, _ in cached}) == 3
    for (ids, score), (_, other) in zip(cached, uncached, strict=True):
        assert score == pytest.approx(other, abs=1e-4)
        assert score == pytest.approx(score_of(model, PROMPTS[2], ids), abs=1e-4)
    assert [score for _, score in cached] == sorted((score for _, score in cached), reverse=True)


@pytest.mark.parametrize("beams", [1, 2])
def test_an_unlikely_end_does_not_end_the_search(beams):
    """Token 1 follows itself with 0.89 and the text ends (0) with 0.1.

    Four ones score ln 0.89 a token, ending at once ln 0.1.
    """
    model = table_model([[0.9, 0.05, 0.05], [0.1, 0.89, 0.01], [0.98, 0.01, 0.01]])
    best, score = beam_search(model, [1], SampleConfig(tokens=4, beams=beams), end=0)[0]
    assert best == [1, 1, 1, 1]
    assert score == pytest.approx(torch.tensor(0.89).log().item(), abs=1e-4)


def test_an_end_takes_no_beam_from_what_goes_on():
    """After 0 the text ends with 0.4, or goes on with 1 (0.35) or 2 (0.25), and only 2 is sure of what follows."""
    model = table_model([[0.4, 0.35, 0.25], [0.3, 0.4, 0.3], [0.0, 0.0, 1.0]])
    best, score = beam_search(model, [0], SampleConfig(tokens=4, beams=2), end=0)[0]
    assert best == [2, 2, 2, 2]
    assert score == pytest.approx(torch.tensor(0.25).log().item() / 4, abs=1e-4)


def test_the_length_penalty_chooses_between_short_and_long():
    """Ending at once has probability 0.45, three twos 0.5 * 0.8 * 0.8 = 0.32.

    The sum prefers the first, the mean the second.
    """
    model = table_model([[0.9, 0.05, 0.05], [0.45, 0.05, 0.5], [0.2, 0.0, 0.8]])
    found = {
        penalty: beam_search(model, [1], SampleConfig(tokens=3, beams=9, length_penalty=penalty), end=0)[0][0]
        for penalty in (0.0, 1.0)
    }
    assert found == {0.0: [0], 1.0: [2, 2, 2]}
