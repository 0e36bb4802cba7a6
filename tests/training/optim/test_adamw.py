"""The optimizer, against its formula."""

import pytest
import torch

from axes import every_config, every_config_and_recipe, every_neighbour, model_config
from gptloom.checkpoint.state import load_state_tensors, state_tensors
from gptloom.config.model import ModelConfig
from gptloom.config.run import TrainConfig
from gptloom.model.build import build_model
from gptloom.model.loss import Objective
from gptloom.training.optim import set_lr_scale
from gptloom.training.optim.adamw import FlatAdamW, parameter_groups
from model_helpers import CONFIGS, SMALL, build, random_ids

# --- what decays ----------------------------------------------------------------------------------


@every_config_and_recipe
def test_every_parameter_is_in_one_group_and_only_matrices_decay(name):
    with torch.device("meta"):
        model = build_model(model_config(name))
    groups = parameter_groups(model, 0.3)
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(decay) == len(list(model.parameters()))
    for label, p in model.named_parameters():
        matrices = (".qkv.weight", ".query.weight", ".kv.weight", ".out.weight", ".up.weight", ".down.weight")
        is_matrix = label.endswith(matrices) or label == "head.weight" or label.startswith("layers.weight_")
        assert decay[id(p)] == (0.3 if is_matrix else 0.0), label
    if model.config.head == "tied":
        assert decay[id(model.head.weight)] == 0.0  # it is the token table


@pytest.mark.parametrize("name", ["lecture", "multi-query"])
def test_everything_decays_as_where_adamw_is_given_all_parameters(name):
    flat, plain = build(CONFIGS[name]), build(CONFIGS[name])
    ours = FlatAdamW(flat, TrainConfig(learning_rate=0.01, beta2=0.999, weight_decay=0.01, decay="all"))
    theirs = torch.optim.AdamW(plain.parameters(), lr=0.01)  # PyTorch's defaults
    for seed in range(3):
        for model, optimizer in ((flat, ours), (plain, theirs)):
            optimizer.zero_grad()
            nats, count = Objective(model)(random_ids(2, 10, seed=seed), random_ids(2, 10, seed=seed + 50))
            (nats / count).backward()
            optimizer.step()
    for (label, one), other in zip(flat.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6, msg=lambda text, label=label: f"{label}: {text}")


def test_frozen_parameters_are_left_out():
    model = build(CONFIGS["gpt2"])
    model.token_table.weight.requires_grad_(False)
    assert all(p is not model.token_table.weight for group in parameter_groups(model, 0.1) for p in group["params"])


# --- the step -------------------------------------------------------------------------------------


def test_a_step_is_adamw_s_formula():
    """Loshchilov and Hutter 2019, algorithm 2, in float64, over four steps and two learning rates."""
    model = build(CONFIGS["modern"]).double()
    config = TrainConfig(learning_rate=0.01, beta1=0.8, beta2=0.95, weight_decay=0.2)
    decay = {id(p): group["weight_decay"] for group in parameter_groups(model, 0.2) for p in group["params"]}
    assert set(decay.values()) == {0.0, 0.2}
    optimizer = FlatAdamW(model, config)
    theta = {name: p.detach().clone() for name, p in model.named_parameters()}
    m, v = ({name: torch.zeros_like(p) for name, p in theta.items()} for _ in range(2))
    for t in range(1, 5):
        rate = 0.01 if t < 3 else 0.002
        set_lr_scale(optimizer, rate / 0.01)
        optimizer.zero_grad()
        nats, count = Objective(model)(random_ids(2, 10, seed=t), random_ids(2, 10, seed=t + 50))
        (nats / count).backward()
        for name, p in model.named_parameters():
            g = p.grad
            m[name] = 0.8 * m[name] + 0.2 * g
            v[name] = 0.95 * v[name] + 0.05 * g * g
            adam = (m[name] / (1 - 0.8**t)) / ((v[name] / (1 - 0.95**t)).sqrt() + 1e-8)
            theta[name] = theta[name] - rate * (adam + decay[id(p)] * theta[name])
        optimizer.step()
        for name, p in model.named_parameters():
            torch.testing.assert_close(p.detach(), theta[name], atol=1e-12, rtol=1e-9)


@every_config
def test_laying_the_parameters_out_in_one_buffer_changes_no_number(name):
    """Against torch's AdamW, given the same gradients, on a twin whose parameters stay apart.

    And the model still is what it was.
    """
    flat, apart = build(CONFIGS[name]), build(CONFIGS[name])
    with torch.no_grad():
        before = flat(random_ids(2, 10))
        one = FlatAdamW(flat, TrainConfig(learning_rate=0.01))
        assert torch.equal(flat(random_ids(2, 10)), before)
    other = torch.optim.AdamW(parameter_groups(apart, 0.1), lr=0.01, betas=(0.9, 0.99), eps=1e-8)
    for step in range(4):
        one.zero_grad()
        Objective(flat)(random_ids(4, 10, seed=step), random_ids(4, 10, seed=step + 100))[0].backward()
        for p, q in zip(flat.parameters(), apart.parameters(), strict=True):
            q.grad = p.grad.clone()
        one.step()
        other.step()
    for (label, p), q in zip(flat.named_parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-6, rtol=1e-5, msg=lambda text, label=label: f"{label}: {text}")
    assert flat.head is None or flat.config.head != "tied" or flat.head.weight is flat.token_table.weight


def test_gradients_are_summed_over_calls_and_zeroed_between_steps():
    model = build(CONFIGS["gpt2"])
    optimizer = FlatAdamW(model, TrainConfig())

    def gradient(*seeds):
        optimizer.zero_grad()
        for seed in seeds:
            Objective(model)(random_ids(2, 10, seed=seed), random_ids(2, 10, seed=seed + 5))[0].backward()
        return torch.cat([gradient.clone() for gradient in optimizer.gradients()])

    torch.testing.assert_close(gradient(1, 2), gradient(1) + gradient(2))
    assert torch.equal(gradient(1), gradient(1))


def test_gradients_that_were_taken_off_by_others_still_count():
    """`nn.Module.zero_grad` sets gradients to None, and backward then makes new ones."""
    model, twin = build(CONFIGS["gpt2"]), build(CONFIGS["gpt2"])
    for one in (model, twin):
        optimizer = FlatAdamW(one, TrainConfig(learning_rate=0.01))
        (one if one is model else optimizer).zero_grad()
        Objective(one)(random_ids(2, 10), random_ids(2, 10, seed=1))[0].backward()
        optimizer.step()
    assert torch.equal(model.head.weight, twin.head.weight)


# --- saved and restored ---------------------------------------------------------------------------


def steps(model, optimizer, first, last):
    losses = []
    for step in range(first, last):
        optimizer.zero_grad()
        nats, count = Objective(model)(random_ids(4, 10, seed=step), random_ids(4, 10, seed=step + 100))
        (nats / count).backward()
        optimizer.step()
        losses.append((nats / count).item())
    return losses


@pytest.mark.parametrize("name", ["modern", "gpt2", "bigram", "lecture"])
def test_a_restored_optimizer_goes_on_bit_for_bit(name):
    config = TrainConfig(learning_rate=0.01)
    straight = build(CONFIGS[name])
    optimizer = FlatAdamW(straight, config)
    expected = steps(straight, optimizer, 0, 6)

    first = build(CONFIGS[name])
    optimizer = FlatAdamW(first, config)
    losses = steps(first, optimizer, 0, 3)
    second = build(CONFIGS[name], seed=1)
    second.load_state_dict(first.state_dict())
    saved = state_tensors(optimizer)
    assert {key.split("/")[0] for key in saved} == {"step", "exp_avg", "exp_avg_sq"}
    assert {key.split("/")[1] for key in saved} == {name for name, _ in first.named_parameters()}
    steps(first, optimizer, 3, 4)  # what was saved are copies: going on does not change them

    optimizer = FlatAdamW(second, config)
    load_state_tensors(optimizer, dict(reversed(saved.items())))
    assert losses + steps(second, optimizer, 3, 6) == expected
    for (label, one), other in zip(straight.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other), label


def test_without_its_memory_the_optimizer_goes_elsewhere():
    """So that the test above means something."""
    model = build(CONFIGS["gpt2"])
    steps(model, FlatAdamW(model, TrainConfig(learning_rate=0.01)), 0, 3)
    forgetful = steps(model, FlatAdamW(model, TrainConfig(learning_rate=0.01)), 3, 6)
    straight = build(CONFIGS["gpt2"])
    assert steps(straight, FlatAdamW(straight, TrainConfig(learning_rate=0.01)), 0, 6)[3:] != forgetful


@pytest.mark.parametrize(
    ("key", "shape"), [("exp_avg/nothing.weight", (2,)), ("exp_avg/head.weight", (2, 2)), ("head.weight", (13, 16))]
)
def test_memory_that_fits_no_parameter_is_refused(key, shape):
    model = build(CONFIGS["mean"])
    with pytest.raises(ValueError, match="does not match any parameter"):
        load_state_tensors(FlatAdamW(model, TrainConfig()), {key: torch.zeros(shape)})


@every_neighbour
def test_matrices_decay_and_tables_and_vectors_do_not(architecture):
    model = build_model(ModelConfig(**SMALL, architecture=architecture))
    groups = parameter_groups(model, 0.1)
    tables = {id(p) for name, p in model.named_parameters() if "table" in name}
    assert all(p.ndim == 2 and id(p) not in tables for p in groups[0]["params"])
    assert all(p.ndim == 1 or id(p) in tables for p in groups[1]["params"])
