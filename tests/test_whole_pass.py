"""A training step's passes in a straight line, against the objective by autograd."""

import pytest
import torch
from torch import nn

from conftest import CONFIGS, SMALL, build, random_ids
from gptloom.config.model import ModelConfig
from gptloom.config.run import IGNORED, TrainConfig
from gptloom.devices import threads
from gptloom.fast import train
from gptloom.fast.train import TrainingPass
from gptloom.model.loss import Objective
from gptloom.training.optim.adamw import make_optimizer
from test_whole_block import ALL, PLANNED

MORE = {
    "tied, LayerNorm without biases": {"head": "tied", "bias": "none"},
    "biases everywhere": {"bias": "all", "head_bias": True, "mlp": "gelu"},
    "n-grams that are left out": {"norm": "rmsnorm", "bias": "none", "ngrams": 3, "ngram_rows": 50, "ngram_dropout": 0.4},
    "sinusoids": {"positions": "sinusoidal", "ngrams": 3, "ngram_rows": 50},
}
SHAPES = ALL | {name: ModelConfig(**SMALL | fields) for name, fields in MORE.items()}
STRAIGHT = [name for name in [*PLANNED, *MORE] if SHAPES[name].architecture == "decoder"]
SHARE = 0.03


def batch(rows, time, seed=0):
    """Inputs and targets, some of which do not count."""
    targets = random_ids(rows, time, seed=seed + 50)
    return random_ids(rows, time, seed=seed), targets.masked_fill(targets % 3 == 0, IGNORED)


def gradients(model):
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.to_dense().clone() for name, p in model.named_parameters()}


def by_autograd(model, *batches):
    total = 0.0
    torch.manual_seed(5)
    for one in batches:
        nats, _ = Objective(model)(*one)
        (nats * SHARE).backward()
        total += nats.detach()
    return gradients(model) | {"loss": total}


def assert_alike(found, wanted):
    assert found.keys() == wanted.keys()
    for name, one in wanted.items():
        torch.testing.assert_close(found[name], one, atol=1e-11, rtol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


def straight(model, zero_grad=None):
    """A pass that must not fall back on autograd."""
    made = TrainingPass(Objective(model), zero_grad or model.zero_grad)
    made.objective.forward = lambda *given: pytest.fail("by autograd")
    return made


def test_the_models_that_recipes_train_on_a_cpu_go_straight():
    assert {"lecture", "tiny", "ngrams", *MORE} <= set(STRAIGHT)


@pytest.mark.parametrize("optimizer", ["adamw", "muon", None])
@pytest.mark.parametrize("name", STRAIGHT)
def test_loss_and_gradients_are_autograd_s(name, optimizer):
    """Of one batch, of two that are added up, and of a later one that replaces them, wherever an optimizer wants its gradients."""
    first, second, last = (batch(3, 9, seed) for seed in range(3))
    model = build(SHAPES[name]).double().train()
    made = make_optimizer(model, TrainConfig(optimizer=optimizer)) if optimizer else None
    run = straight(model, made.zero_grad if made else None)
    torch.manual_seed(5)
    loss = run(first, SHARE) + run(second, SHARE, fresh=False)
    assert_alike(gradients(model) | {"loss": loss}, by_autograd(build(SHAPES[name]).double().train(), first, second))
    torch.manual_seed(5)
    loss = run(last, SHARE)
    assert_alike(gradients(model) | {"loss": loss}, by_autograd(build(SHAPES[name]).double().train(), last))


@pytest.mark.parametrize("name", ["ngrams", "lecture"])
def test_batches_of_other_shapes_are_laid_out_anew(name):
    model = build(CONFIGS[name]).double().train()
    run = straight(model)
    for rows, time in ((3, 9), (2, 10), (1, 1), (3, 9)):
        found = run(batch(rows, time), SHARE)
        assert_alike(gradients(model) | {"loss": found}, by_autograd(build(CONFIGS[name]).double().train(), batch(rows, time)))


@pytest.mark.parametrize("moved", ["weights", "gradients"])
def test_weights_and_gradients_that_have_moved_are_found_again(moved):
    model = build(CONFIGS["lecture"]).double().train()
    run = straight(model)
    run(batch(3, 9), SHARE)
    wanted = gradients(model)
    if moved == "gradients":
        model.zero_grad(set_to_none=True)
    else:
        for parameter in model.parameters():
            left, parameter.data = parameter.data, parameter.data.clone()
            left.zero_()
    run(batch(3, 9), SHARE)
    assert_alike(gradients(model), wanted)


def test_weights_that_change_in_their_places_are_read_as_they_are():
    """As an optimizer changes them, or a checkpoint that is loaded."""
    model, other = (build(CONFIGS["tiny"], seed=seed).double().train() for seed in (0, 1))
    run = straight(model)
    run(batch(3, 9), SHARE)
    model.load_state_dict(other.state_dict())
    loss = run(batch(3, 9), SHARE)
    assert_alike(gradients(model) | {"loss": loss}, by_autograd(other, batch(3, 9)))


def frozen(model):
    model.token_table.weight.requires_grad_(False)


def listened_to(model):
    model.blocks[0].register_forward_hook(lambda *given: None)


def adapted(model):
    model.head = nn.Sequential(model.head)


@pytest.mark.parametrize("change", [frozen, listened_to, adapted])
def test_what_would_be_passed_over_is_left_to_autograd(change):
    model, calls = build(CONFIGS["lecture"]).double().train(), []
    change(model)
    objective = Objective(model)
    forward = objective.forward
    run = TrainingPass(objective, model.zero_grad)
    objective.forward = lambda *given: calls.append(1) or forward(*given)
    loss = run(batch(3, 9), SHARE)
    assert calls
    found = gradients(model) | {"loss": loss}
    model.zero_grad()
    assert_alike(found, by_autograd(model, batch(3, 9)))


@pytest.mark.parametrize("name", ["gpt2", "modern", "original", "mean"])
def test_models_without_a_plan_are_trained_by_autograd(name):
    model = build(CONFIGS[name]).double().eval()  # without dropout
    loss = TrainingPass(Objective(model), model.zero_grad)(batch(3, 9), SHARE)
    assert_alike(gradients(model) | {"loss": loss}, by_autograd(build(CONFIGS[name]).double().eval(), batch(3, 9)))


def test_smoothing_autocast_and_long_windows_are_left_to_autograd(monkeypatch):
    model = build(CONFIGS["lecture"]).train()
    assert TrainingPass(Objective(model, 0.1), model.zero_grad).model is None
    assert TrainingPass(Objective(model), model.zero_grad, lambda: torch.autocast("cpu", torch.bfloat16)).model is None
    run = TrainingPass(Objective(model), model.zero_grad)
    monkeypatch.setattr(train, "LONGEST", 8)
    run(batch(3, 9), SHARE)
    assert run.line is None
    run(batch(3, 8), SHARE)
    assert run.line is not None


def test_a_window_beyond_the_context_is_refused():
    model = build(CONFIGS["lecture"]).train()
    with pytest.raises(ValueError, match="do not fit"):
        TrainingPass(Objective(model), model.zero_grad)(batch(2, model.config.block_size + 1), SHARE)


@pytest.mark.parametrize("name", ["lecture", "tiny", "ngrams"])
def test_single_precision_with_the_products_of_a_run_is_as_near_as_it_can_be(name):
    """Where oneDNN and MKL take turns (`devices.threads`), on batches whose products are small for one and large for the other."""
    for rows, time in ((2, 3), (64, 10)):
        model = build(CONFIGS[name]).train()
        with threads(None):
            straight(model)(batch(rows, time), SHARE)
        wanted = by_autograd(build(CONFIGS[name]).double().train(), batch(rows, time))
        for label, found in gradients(model).items():
            torch.testing.assert_close(found.double(), wanted[label], atol=1e-5 * float(wanted[label].abs().max() + 1), rtol=1e-4)
