"""The n-gram baselines, against a slow model with dictionaries."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptloom.studies.ladder.neighbours import NGram, discount

TEXT = (
    np.array(list(b"the cat sat on the mat and the rat sat on the cat, then the bat ate the hat " * 3), dtype=np.uint8)
    % 29
)


class Slow:
    """Interpolated Kneser-Ney smoothing by its definition, with dictionaries and recursion."""

    def __init__(self, ids, vocab_size, n):
        self.ids, self.vocab_size, self.n = list(map(int, ids)), vocab_size, n
        grams = {k: [tuple(self.ids[i : i + k]) for i in range(len(self.ids) - k + 1)] for k in range(1, n + 1)}
        self.counts = {n: Counter(grams[n])} if n else {}
        for k in range(1, n):  # the number of different tokens before a sequence
            self.counts[k] = Counter(longer[1:] for longer in set(grams[k + 1]))
        self.discounts = {}
        for k, counts in self.counts.items():
            once, twice = (sum(value == wanted for value in counts.values()) for wanted in (1, 2))
            self.discounts[k] = once / (once + 2 * twice) if once else 0.5

    def p(self, context, token):
        context = tuple(context)[max(0, len(context) - self.n + 1) :] if self.n > 1 else ()
        return self.level(context, token, len(context) + 1) if self.n else 1 / self.vocab_size

    def level(self, context, token, k):
        shorter = 1 / self.vocab_size if k == 1 else self.level(context[1:], token, k - 1)
        followers = {gram: count for gram, count in self.counts[k].items() if gram[:-1] == context}
        total = sum(followers.values())
        if not total:
            return shorter
        d = self.discounts[k]
        return (max(followers.get((*context, token), 0) - d, 0) + d * len(followers) * shorter) / total


@pytest.mark.parametrize("n", range(6))
def test_probabilities_are_those_of_the_definition(n):
    fast, slow = NGram(TEXT, 29, n), Slow(TEXT, 29, n)
    other = np.concatenate(
        [TEXT[40:60], np.array([28, 28, 3], dtype=np.uint8), TEXT[:20]]
    )  # with sequences that were never seen
    expected = [slow.p(other[:i].tolist(), int(other[i])) for i in range(1, len(other))]
    np.testing.assert_allclose(fast.probabilities(other), expected, rtol=1e-12)
    for place in (0, 1, 5, 22, 30):
        context = other[:place].tolist()
        found = fast.next_token(context)
        assert found.sum() == pytest.approx(1.0, abs=1e-12) and (found > 0).all()
        np.testing.assert_allclose(found, [slow.p(context, token) for token in range(29)], rtol=1e-12)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=60), st.lists(st.integers(0, 6), max_size=8), st.integers(0, 6))
def test_probabilities_sum_to_one_whatever_was_counted(ids, context, n):
    found = NGram(np.array(ids, dtype=np.uint16), 7, n).next_token(context)
    assert found.sum() == pytest.approx(1.0, abs=1e-12) and (found >= 0).all()


def test_a_large_vocabulary_does_not_overflow():
    ids = np.array([99_999, 5, 99_998, 5, 99_999, 5, 99_998, 5] * 50, dtype=np.uint32)
    model = NGram(ids, 100_000, 5)
    assert model.next_token([99_999, 5, 99_998, 5])[99_999] > 0.9 and model.next_token(
        ids[:40].tolist()
    ).sum() == pytest.approx(1.0)


def test_uniform_costs_the_logarithm_of_the_vocabulary():
    assert NGram(TEXT, 29, 0).score(TEXT).loss == pytest.approx(math.log(29), rel=1e-12)


def test_unigram_costs_the_cross_entropy_of_the_frequencies():
    ids = np.random.default_rng(0).choice(5, size=50_000, p=[0.4, 0.3, 0.2, 0.07, 0.03]).astype(np.uint8)
    shares = np.bincount(ids) / len(ids)
    assert NGram(ids, 5, 1).score(ids).loss == pytest.approx(-(shares * np.log(shares)).sum(), abs=1e-3)


def test_a_text_that_repeats_itself_costs_nothing_once_the_context_tells_where_it_is():
    ids = np.array(list(b"abacadae" * 400), dtype=np.uint8)
    losses = [NGram(ids, 256, n).score(ids[:800]).loss for n in range(5)]
    assert losses[:4] == sorted(losses[:4], reverse=True) and losses[2] > 0.5 and max(losses[3:]) < 0.02


def test_scoring_in_stretches_is_scoring_at_once(monkeypatch):
    model = NGram(TEXT, 29, 4)
    whole = model.score(TEXT, byte_count=10)
    monkeypatch.setattr("gptloom.studies.ladder.neighbours._STRETCH", 7)
    again = model.score(TEXT, byte_count=10)
    assert again.nats == pytest.approx(whole.nats, rel=1e-12) and (again.tokens, again.bytes) == (len(TEXT) - 1, 10)


def test_the_discount_is_estimated_from_what_was_counted_once_and_twice():
    assert discount(np.array([1, 1, 1, 2, 5])) == 3 / 5 and discount(np.array([2, 3])) == 0.5


def test_writing_follows_the_probabilities_and_the_seed():
    ids = np.array(list(b"abc" * 300), dtype=np.uint8)
    model = NGram(ids, 128, 3)
    assert bytes(model.write(list(b"ab"), 30, seed=1)).count(b"cab") >= 8
    assert model.write([97], 20, seed=2) == model.write([97], 20, seed=2)
    frequencies = np.bincount(NGram(TEXT, 29, 1).write([], 1000, seed=3), minlength=29) / 1000
    np.testing.assert_allclose(frequencies, np.bincount(TEXT, minlength=29) / len(TEXT), atol=0.06)
