"""Embeddings of hashed n-grams: rows against Python's integers, gradients against autograd, and even use of rows."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gptloom.model.cache import Context
from gptloom.model.ngram import HashedNgrams, ngram_rows, ngram_rows_at
from model_helpers import CONFIGS, build, random_ids, rows_of


@given(st.lists(st.integers(0, 70_000), min_size=1, max_size=12), st.integers(2, 8), st.integers(1, 100_000))
def test_rows_are_what_python_s_integers_say(ids, longest, rows):
    known = torch.tensor([[-1] * (longest - 1) + ids])
    found = rows_of(ids, longest, rows)
    assert ngram_rows(known, longest, rows)[0].tolist() == found
    assert ngram_rows_at(known[0, -longest:-1].tolist(), ids[-1], rows) == found[-1]


@pytest.mark.parametrize(("longest", "tokens"), [(2, 65), (2, 256), (3, 29)])
def test_n_grams_spread_over_the_rows_as_if_thrown_at_random(longest, tokens):
    """The share of empty rows is at most e**(-balls / rows) plus four standard deviations."""
    rows = 32_768
    known = torch.cartesian_prod(*[torch.arange(tokens)] * longest)
    empty = rows - ngram_rows(known, longest, rows)[..., -1].unique().numel()
    left = math.exp(-len(known) / rows)
    assert empty <= rows * left + 4 * (rows * left * (1 - left)) ** 0.5


@pytest.mark.parametrize("longest", [2, 5])
def test_sparse_gradients_are_the_dense_ones(longest):
    ids = random_ids(3, 7, 50)
    grads, outs = [], []
    for sparse in (False, True):
        layer = HashedNgrams(longest, 40, 6).double()
        with torch.no_grad():
            layer.weight.copy_(torch.randn(40, 6, generator=torch.Generator().manual_seed(0)))
        layer.sparse = sparse
        out = layer(ids, Context())
        out.square().sum().backward()
        outs.append(out.detach())
        grads.append(layer.weight.grad.to_dense() if sparse else layer.weight.grad)
        assert layer.weight.grad.is_sparse == sparse
    torch.testing.assert_close(outs[0], outs[1])
    torch.testing.assert_close(grads[0], grads[1])


def test_a_table_of_zeros_changes_nothing_and_a_full_one_knows_exactly_its_n_grams():
    """The sum at a position depends on the last `longest` tokens, and on no earlier ones."""
    model = build(CONFIGS["ngrams"])
    layer, ids = model.ngrams, random_ids(1, 10)
    changed = ids.clone()
    changed[0, 3] = (ids[0, 3] + 1) % 13
    one, other = layer(ids, Context()), layer(changed, Context())
    differs = (one != other).any(-1)[0].tolist()
    assert differs == [False] * 3 + [True] * 4 + [False] * 3  # four tokens: the n-grams that contain position 3
    torch.nn.init.zeros_(layer.weight)
    assert not layer(ids, Context()).any()


def test_positions_go_without_their_n_grams_in_training_only():
    """All n-grams of a position are dropped or none, and the rest is not scaled."""
    layer, ids = HashedNgrams(3, 40, 6, dropout=0.4), random_ids(50, 20)
    torch.nn.init.normal_(layer.weight)
    whole = layer.eval()(ids, Context())
    torch.manual_seed(0)
    found = layer.train()(ids, Context())
    gone = (found == 0).all(-1)
    assert torch.equal(found[~gone], whole[~gone])
    assert float(gone.float().mean()) == pytest.approx(0.4, abs=0.05)
    found.sum().backward()
    rows = ngram_rows(torch.cat((torch.full((50, 2), -1), ids), 1), 3, 40)
    times = torch.zeros(40).index_add_(0, rows[~gone].flatten(), torch.ones(rows[~gone].numel()))
    torch.testing.assert_close(layer.weight.grad[:, 0], times)
