from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from axes import every_sampling, every_world
from data_helpers import positions
from gptloom.config.run import IGNORE_INDEX
from gptloom.data.batches import Batches, Draws, evaluation_windows
from gptloom.data.tokens import Tokens
from gptloom.errors import InputError

STARTS = (0, 3, 4, 40, 41, 90)


def batches(tokens: Tokens, sampling: str = "random", **changes) -> Batches:
    return Batches(tokens, **{"block_size": 8, "batch_size": 6, "seed": 7, "sampling": sampling} | changes)


def targets_of(maker: Batches, tokens_of_epoch: int, epoch: int, rows: int) -> list[int]:
    """The targets of the windows epoch * rows ... (epoch + 1) * rows, read one window per step."""
    found = [
        target
        for step in range(epoch * rows, (epoch + 1) * rows)
        for target in maker.batch(step).targets.flatten().tolist()
        if target != IGNORE_INDEX
    ]
    assert len(found) == tokens_of_epoch
    return found


@every_sampling
def test_targets_are_the_tokens_that_follow(sampling):
    maker = batches(positions(100, STARTS), sampling)
    for step in range(40):
        batch = maker.batch(step)
        assert batch.inputs.dtype == batch.targets.dtype == torch.int64
        assert batch.inputs.shape == batch.targets.shape == (6, maker.time)
        assert batch.inputs.is_contiguous() and batch.targets.is_contiguous()
        real = batch.targets != IGNORE_INDEX
        assert torch.equal(batch.inputs[real] + 1, batch.targets[real])
        rows = batch.inputs.numpy()
        for row, valid in zip(rows, real.numpy(), strict=True):
            assert (
                valid[0]
                and np.array_equal(row[valid], np.arange(row[0], row[0] + valid.sum()))
                and not row[~valid].any()
            )


@every_sampling
def test_a_step_depends_on_the_seed_and_its_number_alone(sampling):
    tokens = positions(100, STARTS)
    forward, backward = batches(tokens, sampling), batches(tokens, sampling)
    ahead = [forward.batch(step).inputs for step in range(50)]
    torch.manual_seed(1)
    before, state = torch.get_rng_state(), np.random.get_state()[1].copy()
    back = [backward.batch(step).inputs for step in reversed(range(50))]
    assert all(torch.equal(a, b) for a, b in zip(ahead, reversed(back), strict=True))
    assert torch.equal(before, torch.get_rng_state()) and np.array_equal(state, np.random.get_state()[1])
    other = batches(tokens, sampling, seed=8)
    assert not torch.equal(torch.stack(ahead), torch.stack([other.batch(step).inputs for step in range(50)]))
    assert len({tuple(batch.flatten().tolist()) for batch in ahead}) > 40


@every_sampling
@every_world
def test_ranks_share_out_the_same_batch(sampling, world):
    tokens = positions(100, STARTS)
    whole = batches(tokens, sampling)
    ranks = [batches(tokens, sampling, rank=rank, world=world) for rank in range(world)]
    for step in (0, 1, 17):
        assert torch.equal(torch.cat([rank.batch(step).targets for rank in ranks]), whole.batch(step).targets)
        assert torch.equal(torch.cat([rank.batch(step).inputs for rank in ranks]), whole.batch(step).inputs)


def test_the_draws_never_change():
    """Golden values: later versions reproduce a run only if these do not change."""
    assert batches(positions(1000)).batch(3).inputs[:, 0].tolist() == [601, 35, 15, 371, 597, 830]
    assert batches(positions(1000), "shuffled").batch(3).inputs[:, 0].tolist() == [917, 797, 117, 277, 877, 461]


@given(
    seed=st.integers(0, 2**64 - 1),
    stream=st.integers(0, 3),
    calls=st.lists(st.tuples(st.integers(0, 2**40), st.integers(0, 9), st.integers(0, 30)), max_size=5),
)
def test_a_stream_is_that_of_a_fresh_generator(seed, stream, calls):
    """Draws do not depend on earlier draws or on the offset; the reference has a new generator for each call."""
    draws = Draws(seed, stream)
    for index, count, first in calls:
        fresh = np.random.Philox(key=np.array([seed, stream], np.uint64), counter=np.array([0, index, 0, 0], np.uint64))
        assert np.array_equal(draws.at(index, count, first=first), fresh.random_raw(first + count)[first:])


def test_random_starts_are_uniform_and_reach_both_ends():
    maker = batches(positions(12), block_size=4, batch_size=4000)
    counts = Counter(maker.batch(0).inputs[:, 0].tolist())
    assert set(counts) == set(range(8))
    assert all(abs(count - 500) < 100 for count in counts.values())  # 4.8 standard deviations
    assert maker.tokens_per_epoch == 11


@given(n=st.integers(2, 90), block=st.integers(1, 20), seed=st.integers(0, 2**64 - 1))
def test_shuffled_visits_each_window_once_an_epoch(n, block, seed):
    maker = batches(positions(n), "shuffled", block_size=block, batch_size=1, seed=seed)
    rows = maker.tokens_per_epoch // maker.time
    for epoch in range(3):
        targets = targets_of(maker, maker.tokens_per_epoch, epoch, rows)
        assert len(set(targets)) == len(targets) and max(targets) - min(targets) == len(targets) - 1
    assert maker.time == min(block, n - 1) and maker.tokens_per_epoch > n - 2 - 2 * maker.time


def test_shuffled_epochs_differ_in_order_and_offset_and_reach_every_target():
    maker = batches(positions(101), "shuffled", batch_size=1)
    rows = maker.tokens_per_epoch // 8
    epochs = [targets_of(maker, rows * 8, epoch, rows) for epoch in range(30)]
    assert {min(epoch) for epoch in epochs} <= set(range(1, 14)) and len({min(epoch) for epoch in epochs}) > 8
    assert len({tuple(np.argsort(epoch[::8])) for epoch in epochs}) == 30
    assert set().union(*epochs) == set(range(1, 101))


@pytest.mark.parametrize("sampling", ["shuffled", "documents"])
def test_steps_run_on_across_epochs(sampling):
    tokens = positions(100, STARTS)
    one, many = batches(tokens, sampling, batch_size=1), batches(tokens, sampling, batch_size=50)
    singles = torch.cat([one.batch(step).inputs for step in range(100)])
    assert torch.equal(singles, torch.cat([many.batch(0).inputs, many.batch(1).inputs]))


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=12).filter(lambda x: max(x) > 1), block=st.integers(1, 12)
)
def test_document_windows_never_cross_and_visit_each_target_once_an_epoch(lengths, block):
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    maker = batches(positions(sum(lengths), tuple(starts.tolist())), "documents", block_size=block, batch_size=1)
    rows = sum(-(-(length - 1) // block) for length in lengths)
    targets = targets_of(maker, maker.tokens_per_epoch, 0, rows)
    assert sorted(targets) == sorted(set(range(sum(lengths))) - set(starts.tolist()))
    for step in range(rows):
        batch = maker.batch(step)
        inside = batch.inputs[batch.targets != IGNORE_INDEX].numpy()
        assert len(set(np.searchsorted(starts, inside, side="right"))) == 1


def test_empty_documents_do_no_harm():
    maker = batches(
        Tokens(np.arange(5, dtype=np.uint8), np.array([0, 0, 3, 5])), "documents", block_size=1, batch_size=3
    )
    assert sorted(maker.batch(0).targets.flatten().tolist()) == [1, 2, 4]


@every_sampling
@pytest.mark.parametrize("n", [2, 3, 8, 9])
def test_a_text_shorter_than_a_window_makes_windows_shorter(sampling, n):
    batch = batches(positions(n), sampling, block_size=64).batch(5)
    assert batch.targets.shape == (6, n - 1) and batch.targets[0].tolist() == list(range(1, n))


def test_nothing_to_train_on():
    with pytest.raises(InputError, match="1 token"):
        batches(positions(1))
    with pytest.raises(InputError, match="no document has 2 tokens"):
        batches(positions(3, (0, 1, 2)), "documents")


@given(n=st.integers(2, 200), block=st.integers(1, 30), size=st.integers(1, 8))
def test_evaluation_reads_every_target_once_in_order(n, block, size):
    targets: list[int] = []
    for batch in evaluation_windows(positions(n), block, size):
        assert batch.inputs.shape[0] <= size and batch.inputs.shape[1] == min(block, n - 1)
        real = batch.targets != IGNORE_INDEX
        assert torch.equal(batch.inputs[real] + 1, batch.targets[real])
        targets += batch.targets[real].tolist()
    assert targets == list(range(1, n))
