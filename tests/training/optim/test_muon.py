"""Muon and AdaGrad for tables, against their formulas; and optimizers side by side."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from axes import every_config
from gptloom.checkpoint.state import load_state_tensors, state_tensors
from gptloom.config.run import TrainConfig
from gptloom.distributed import ProcessGroup
from gptloom.model.loss import Objective
from gptloom.training.optim import hidden_matrices, make_optimizer, muon, set_lr_scale
from gptloom.training.optim.muon import Muon, orthogonalise
from model_helpers import CONFIGS, build, random_ids

MUON = TrainConfig(
    optimizer="muon", learning_rate=0.01, matrix_learning_rate=0.02, table_learning_rate=0.1, weight_decay=0.0
)


def backward(model, seed):
    nats, count = Objective(model)(random_ids(4, 10, seed=seed), random_ids(4, 10, seed=seed + 100))
    (nats / count).backward()
    return (nats / count).item()


def steps(model, optimizer, first, last):
    losses = []
    for step in range(first, last):
        optimizer.zero_grad()
        losses.append(backward(model, step))
        optimizer.step()
    return losses


# --- who trains what ------------------------------------------------------------------------------


@every_config
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_every_parameter_has_exactly_one_optimizer(name, kind):
    model = build(CONFIGS[name])
    optimizer = make_optimizer(model, TrainConfig(optimizer=kind))
    parts = getattr(optimizer, "parts", [optimizer])
    held = [label for group in optimizer.param_groups for label in group["param_names"]]
    assert sorted(held) == sorted(label for label, _ in model.named_parameters())
    muons = [group for part in parts if isinstance(part, Muon) for group in part.param_groups]
    matrices = [label for group in muons for label in group["param_names"]]
    assert set(matrices) == (hidden_matrices(model) if kind == "muon" else set())
    assert all(label.startswith("blocks.") and label.endswith(".weight") for label in matrices)


# --- Muon -----------------------------------------------------------------------------------------


@given(st.integers(1, 3), st.integers(1, 24), st.integers(1, 24), st.integers(0, 5))
def test_singular_values_come_near_one_and_their_vectors_stay(count, rows, columns, seed):
    """The polynomial brings values from 0.01 of the largest up to between 0.6 and 1.3.

    And u f(s) v^T has the u and v of u s v^T.
    """
    generator = torch.Generator().manual_seed(seed)
    left, right = (
        torch.linalg.qr(torch.randn(count, n, n, generator=generator, dtype=torch.float64))[0] for n in (rows, columns)
    )
    most = min(rows, columns)
    values = torch.logspace(-2, 0, most, dtype=torch.float64) if most > 1 else torch.ones(1, dtype=torch.float64)
    left, right = left[..., :most], right[..., :most]
    near = orthogonalise((left * values) @ right.transpose(1, 2))
    inside = left.transpose(1, 2) @ near @ right
    found = inside.diagonal(dim1=1, dim2=2)
    assert found.min() > 0.6
    assert found.max() < 1.3
    torch.testing.assert_close(inside, torch.diag_embed(found), atol=1e-9, rtol=0)


@pytest.mark.parametrize("shape", [(2, 8, 8), (3, 8, 20), (1, 4, 64)])
def test_both_forms_of_the_iteration_agree(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = x / torch.linalg.matrix_norm(x, keepdim=True)
    torch.testing.assert_close(muon._by_products(x), muon._by_matrices(x), atol=1e-10, rtol=1e-10)


def test_a_matrix_of_zeros_stays_where_it_is():
    assert not orthogonalise(torch.zeros(2, 3, 5)).any()


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_steps_are_muon_s_formula(decay):
    """Momentum as a mean, Nesterov's look ahead, then the orthogonal matrix.

    It is multiplied by sqrt(max(1, rows / columns)); the decay is beside it.
    """
    model = build(CONFIGS["modern"]).double()
    optimizer = make_optimizer(model, MUON.model_copy(update={"weight_decay": decay, "momentum": 0.9}))
    theta = {label: p.detach().clone() for label, p in model.named_parameters() if label in hidden_matrices(model)}
    m = {label: torch.zeros_like(p) for label, p in theta.items()}
    for step in range(3):
        share = 1.0 if step < 2 else 0.25
        set_lr_scale(optimizer, share)
        optimizer.zero_grad()
        backward(model, step)
        for label, p in model.named_parameters():
            if label in theta:
                m[label] = 0.9 * m[label] + 0.1 * p.grad
                x = 0.9 * m[label] + 0.1 * p.grad
                x = x / x.norm()
                for _ in range(5):
                    x = 3.4445 * x - 4.7750 * x @ x.T @ x + 2.0315 * x @ x.T @ x @ x.T @ x
                rate = 0.02 * share
                theta[label] = theta[label] * (1 - rate * decay) - rate * max(1.0, p.shape[0] / p.shape[1]) ** 0.5 * x
        optimizer.step()
    for label, p in model.named_parameters():
        if label in theta:
            torch.testing.assert_close(
                p.detach(), theta[label], atol=1e-5, rtol=1e-5, msg=lambda text, label=label: f"{label}: {text}"
            )


def test_ranks_share_the_matrices_out_and_make_the_same_step():
    class One(ProcessGroup):
        """A rank whose sums the test puts together."""

        world = 3

        def __init__(self, rank, shares):
            self.rank, self.shares = rank, shares

        def all_reduce(self, *tensors):
            self.shares.append([tensor.clone() for tensor in tensors])

    alone = build(CONFIGS["tiny"])
    steps(alone, make_optimizer(alone, MUON), 0, 1)
    shares = []
    for rank in range(3):
        model = build(CONFIGS["tiny"])
        optimizer = make_optimizer(model, MUON, One(rank, mine := []))
        steps(model, optimizer, 0, 1)
        shares.append([tensor for tensors in mine for tensor in tensors])
    nonzero = [[[bool(matrix.any()) for matrix in stack] for stack in share] for share in shares]
    for stacks in zip(*nonzero, strict=True):
        assert all(sum(owners) == 1 for owners in zip(*stacks, strict=True))  # each matrix is one rank's work
    whole = [sum(stacks) for stacks in zip(*shares, strict=True)]
    before = dict(build(CONFIGS["tiny"]).named_parameters())
    muons = [part for part in make_optimizer(build(CONFIGS["tiny"]), MUON).parts if isinstance(part, Muon)]
    for flat, shape, stack in zip(muons[0].flats, muons[0].shapes, whole, strict=True):
        for (label, (place, size)), update in zip(flat.places.items(), stack, strict=True):
            del place
            moved = (dict(alone.named_parameters())[label] - before[label]) / (
                -0.02 * max(1.0, shape[1] / shape[2]) ** 0.5
            )
            torch.testing.assert_close(moved.reshape(size), update, atol=1e-4, rtol=1e-4)


# --- AdaGrad --------------------------------------------------------------------------------------


def test_a_table_s_rows_follow_adagrad_and_the_others_rest():
    model = build(CONFIGS["ngrams"]).double()
    optimizer = make_optimizer(model, MUON)
    theta, v = model.ngrams.weight.detach().clone(), torch.zeros(64, dtype=torch.float64)
    for step in range(3):
        share = (1.0, 0.5, 0.1)[step]
        set_lr_scale(optimizer, share)
        optimizer.zero_grad()
        backward(model, step)
        g = model.ngrams.weight.grad.to_dense()
        met = g.abs().sum(1) > 0
        v[met] += g[met].square().mean(1)
        theta[met] -= 0.1 * share * g[met] / v[met].sqrt()[:, None]
        optimizer.step()
    torch.testing.assert_close(model.ngrams.weight.detach(), theta)


def test_a_clipped_gradient_counts_the_table_s_rows():
    """`gradients()` must hold what `step` applies: scaled by zero, nothing moves."""
    model = build(CONFIGS["ngrams"])
    optimizer = make_optimizer(model, MUON)
    before = {label: p.detach().clone() for label, p in model.named_parameters()}
    optimizer.zero_grad()
    backward(model, 0)
    for gradient in optimizer.gradients():
        gradient.zero_()
    optimizer.step()
    assert all(torch.equal(p, before[label]) for label, p in model.named_parameters())


# --- side by side ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ngrams", "tiny", "modern", "bigram"])
def test_restored_optimizers_go_on_bit_for_bit(name):
    straight = build(CONFIGS[name])
    expected = steps(straight, make_optimizer(straight, MUON), 0, 6)
    first, second = build(CONFIGS[name]), build(CONFIGS[name], seed=1)
    optimizer = make_optimizer(first, MUON)
    losses = steps(first, optimizer, 0, 3)
    second.load_state_dict(first.state_dict())
    saved = state_tensors(optimizer)
    steps(first, optimizer, 3, 4)  # what was saved are copies
    optimizer = make_optimizer(second, MUON)
    load_state_tensors(optimizer, dict(reversed(saved.items())))
    assert losses + steps(second, optimizer, 3, 6) == expected


@pytest.mark.parametrize(
    "key", ["momentum/nothing.weight", "squares/ngrams.bias", "exp_avg/blocks.0.mlp.up.weight", "weight"]
)
def test_what_fits_no_parameter_is_refused(key):
    with pytest.raises(ValueError, match="does not match any parameter"):
        load_state_tensors(make_optimizer(build(CONFIGS["ngrams"]), MUON), {key: torch.zeros(2)})


@pytest.mark.parametrize(("before", "after"), [("adamw", "muon"), ("muon", "adamw")])
def test_another_optimizer_s_memory_is_refused(before, after):
    model = build(CONFIGS["gpt2"])
    optimizer = make_optimizer(model, MUON.model_copy(update={"optimizer": before}))
    steps(model, optimizer, 0, 1)
    other = make_optimizer(build(CONFIGS["gpt2"]), MUON.model_copy(update={"optimizer": after}))
    with pytest.raises(ValueError, match="does not match any parameter"):
        load_state_tensors(other, state_tensors(optimizer))
