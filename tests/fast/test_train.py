"""A training step's passes in a straight line, against the objective by autograd."""

import pytest
import torch

from fast_helpers import MORE, PLAIN, SHAPES, SHARE, assert_alike, batch, by_autograd, gradients
from gptloom import fast
from gptloom.config.load import parse, read_recipe
from gptloom.config.model import ModelConfig
from gptloom.config.run import TrainConfig
from gptloom.devices import threads
from gptloom.fast import train as fast_train
from gptloom.fast.decode import make_stepper
from gptloom.fast.train import TrainingPass
from gptloom.model.loss import Objective
from gptloom.training.optim import make_optimizer
from model_helpers import CONFIGS, build, random_ids

STRAIGHT = [name for name, config in SHAPES.items() if fast.why_not(Objective(build(config))) is None]


def straight(model, zero_grad=None):
    """A pass that must not fall back on autograd."""
    made = TrainingPass(Objective(model), zero_grad or model.zero_grad)
    assert made.why is None
    made.by_autograd = lambda *given: pytest.fail("by autograd")
    return made


def test_the_models_that_recipes_train_on_a_cpu_go_straight():
    assert {"lecture", "tiny", "ngrams", *MORE} <= set(STRAIGHT)
    assert not {
        "gpt2",
        "mean",
        "position-wise",
        "single-head",
        "original",
        "no-residual",
        "multi-query",
        "modern",
        "no-mlp",
    } & set(STRAIGHT)


@pytest.mark.parametrize("optimizer", ["adamw", "muon", None])
@pytest.mark.parametrize("name", STRAIGHT)
def test_loss_and_gradients_are_autograd_s(name, optimizer):
    """Of one batch, of two that are added up, and of a later one that replaces them.

    Wherever an optimizer wants its gradients.
    """
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
        assert_alike(
            gradients(model) | {"loss": found}, by_autograd(build(CONFIGS[name]).double().train(), batch(rows, time))
        )


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


def test_comparison_leaves_gradients_and_the_generator_alone():
    model = build(SHAPES["n-grams that are left out"]).train()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    state = torch.get_rng_state()
    assert fast_train.compare(Objective(model), batch(3, 9)) < 1e-5
    assert torch.equal(torch.get_rng_state(), state)
    assert all(bool((p.grad == 1).all()) for p in model.parameters())


def test_comparison_is_not_misled_by_the_sign_of_a_number_near_0():
    """In float32, rounding changes the sign of some ReLU's input in such a model, and with it the gradients."""
    shape = {"vocab_size": 65, "n_layer": 6, "n_embd": 192, "n_head": 6, "ngrams": 3, "block_size": 256}
    config = parse(ModelConfig, read_recipe("tiny")["model"] | shape, where="the test")
    for seed in range(2):
        model, generator = build(config, seed=seed).train(), torch.Generator().manual_seed(seed)
        rows = [torch.randint(65, (2, 256), generator=generator) for _ in range(2)]
        assert fast_train.compare(Objective(model), rows) < 1e-12
        assert {p.dtype for p in model.parameters()} | {b.dtype for b in model.buffers()} == {torch.float32}


# Two values and more of every field, where one value can stand beside SMALL.
VALUES = {
    "architecture": ["decoder", "encoder"],
    "vocab_size": [11, 13],
    "block_size": [10, 12],
    "n_layer": [0, 1, 3],
    "n_head": [1, 2],
    "n_kv_head": [None, 1],
    "n_embd": [8, 16],
    "head_size": [None, 6],
    "mixer": ["attention", "mean", "none"],
    "output_projection": [True, False],
    "score_scale": ["head", "embedding"],
    "qk_norm": [True, False],
    "positions": ["learned", "sinusoidal", "rotary", "none"],
    "ngrams": [1, 2, 4],
    "ngram_rows": [7, 50],
    "ngram_dropout": [0.0, 0.5],
    "rope_theta": [100.0, 10_000.0],
    "mlp": ["none", "relu", "gelu", "gelu-tanh", "swiglu", "relu2"],
    "mlp_width": [None, 12],
    "residual": ["add", "none"],
    "norm": ["none", "layernorm", "rmsnorm"],
    "norm_position": ["pre", "post"],
    "bias": ["all", "not-qkv", "none"],
    "head": ["linear", "tied"],
    "head_bias": [True, False],
    "tables": ["separate", "shared"],
    "dropout": [0.0, 0.1],
    "attn_dropout": [None, 0.0, 0.1],
    "embd_dropout": [None, 0.0, 0.1],
    "init": ["pytorch", "gpt2", "zero-projection"],
}
BESIDE = {
    "ngram_rows": {"ngrams": 3},
    "ngram_dropout": {"ngrams": 3},
    "rope_theta": {"positions": "rotary"},
    "head_size": {"positions": "rotary"},
}


def test_every_field_has_values_to_try():
    assert VALUES.keys() == ModelConfig.model_fields.keys()
    assert fast.TRAINED.keys() == fast.DECODED.keys() == ModelConfig.model_fields.keys()


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in VALUES.items() for value in values])
def test_every_value_of_every_field_is_computed_as_by_the_reference_or_refused(name, value):
    config = ModelConfig(**PLAIN | BESIDE.get(name, {}) | {name: value})
    model = build(config).double().train()
    targets = random_ids(3, 9, seed=51) % config.vocab_size
    one = random_ids(3, 9, seed=1) % config.vocab_size, targets
    run = TrainingPass(Objective(model), model.zero_grad)
    torch.manual_seed(5)
    loss = run(one, SHARE)
    assert (run.why is None) == (fast.why_not(Objective(build(config))) is None)
    found = gradients(model) | {"loss": loss}
    assert_alike(found, by_autograd(build(config).double().train(), one))
    if fast.why_not_decode(model) is None:
        model.eval()
        step, state = make_stepper(model), model.init_cache(2, 6)
        for ids in ([[1, 2, 3], [4, 5, 6]], [[7], [8]]):
            found = step(ids, state)
            done = [[1, 2, 3, 7], [4, 5, 6, 8]] if len(ids[0]) == 1 else ids
            with torch.no_grad():
                torch.testing.assert_close(found, model(torch.tensor(done))[:, -1], atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("name", ["gpt2", "modern", "original", "mean"])
def test_models_without_a_plan_are_trained_by_autograd(name):
    model = build(CONFIGS[name]).double().eval()  # without dropout
    loss = TrainingPass(Objective(model), model.zero_grad)(batch(3, 9), SHARE)
    assert_alike(gradients(model) | {"loss": loss}, by_autograd(build(CONFIGS[name]).double().eval(), batch(3, 9)))


def test_smoothing_autocast_and_long_windows_are_left_to_autograd(monkeypatch):
    model = build(CONFIGS["lecture"]).train()
    assert TrainingPass(Objective(model, 0.1), model.zero_grad).why == "label smoothing is not known to fast/"
    assert (
        TrainingPass(Objective(model), model.zero_grad, lambda: torch.autocast("cpu", torch.bfloat16)).why
        == "autocast is on"
    )
    run = TrainingPass(Objective(model), model.zero_grad)
    monkeypatch.setattr(fast_train, "LONGEST", 8)
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
    """Where oneDNN and MKL take turns (`devices.threads`).

    On batches whose products are small for one and large for the other.
    """
    for rows, time in ((2, 3), (64, 10)):
        model = build(CONFIGS[name]).train()
        with threads(None):
            straight(model)(batch(rows, time), SHARE)
        wanted = by_autograd(build(CONFIGS[name]).double().train(), batch(rows, time))
        for label, found in gradients(model).items():
            torch.testing.assert_close(
                found.double(), wanted[label], atol=1e-5 * float(wanted[label].abs().max() + 1), rtol=1e-4
            )
