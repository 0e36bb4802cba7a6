"""A fast pass over a model that was changed is refused with a reason, and autograd trains instead."""

import pytest
from torch import nn

from fast_helpers import PLAIN, SHAPES, SHARE, assert_alike, batch, by_autograd, gradients
from gptloom import fast
from gptloom.config.model import ModelConfig
from gptloom.fast import train as fast_train
from gptloom.fast.train import TrainingPass
from gptloom.model.layers import MLP
from gptloom.model.loss import Objective
from model_helpers import CONFIGS, build


def frozen(model):
    model.token_table.weight.requires_grad_(False)


def listened_to(model):
    model.blocks[0].register_forward_hook(lambda *given: None)


def adapted(model):
    model.head = nn.Sequential(model.head)


def replaced(model):
    model.blocks[0].mlp = Doubled(SHAPES["lecture"]).double()


def patched(model):
    forward = model.blocks[0].mlp.forward
    model.blocks[0].mlp.forward = lambda x: 2 * forward(x)


def parameter_hook(model):
    model.head.weight.register_hook(lambda grad: None)


class Doubled(MLP):
    def forward(self, x):
        return 2 * super().forward(x)


CHANGES = {
    frozen: "frozen",
    listened_to: "hook is registered on model.blocks.0",
    adapted: "model.head is a Sequential",
    replaced: "model.blocks.0.mlp is a Doubled",
    patched: "a method of model.blocks.0.mlp has been replaced",
    parameter_hook: "hook is registered on a parameter",
}


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_changed_model_is_refused_with_a_reason_and_trained_right(change, late):
    """Before the first batch; and, for what can be seen at each step, after it."""
    if late and change in (adapted, replaced, parameter_hook):
        pytest.skip("layers are replaced before training")
    model, said = build(CONFIGS["lecture"]).double().train(), []
    objective = Objective(model)
    run = TrainingPass(objective, model.zero_grad, say=said.append) if late else None
    if run is not None:
        run(batch(3, 9), SHARE)
        assert run.path == "fast"
    change(model)
    run = run or TrainingPass(objective, model.zero_grad, say=said.append)
    loss = run(batch(3, 9), SHARE)
    assert run.path == "reference"
    assert CHANGES[change] in run.why
    assert len(said) == late
    found = gradients(model) | {"loss": loss}
    model.zero_grad()
    assert_alike(found, by_autograd(model, batch(3, 9)))


def test_objective_with_another_forward_is_refused():
    class Scaled(Objective):
        def forward(self, *batch):
            nats, count = super().forward(*batch)
            return 2 * nats, count

    model = build(CONFIGS["lecture"]).double().train()
    run = TrainingPass(Scaled(model), model.zero_grad)
    assert run.why == "the objective is a Scaled"
    assert float(run(batch(3, 9), SHARE)) == pytest.approx(2 * float(by_autograd(model, batch(3, 9))["loss"]))


def test_unknown_difference_is_found_by_the_comparison(monkeypatch):
    """A change in a function that no whitelist names: the scores' scale."""
    model = build(CONFIGS["lecture"]).double().train()
    run = TrainingPass(Objective(model), model.zero_grad)
    real = fast_train.make_plan
    monkeypatch.setattr(fast_train, "make_plan", lambda config: real(config)._replace(scale=1.001))
    loss = run(batch(3, 9), SHARE)
    assert run.path == "reference" and "differ from the model's" in run.why
    found = gradients(model) | {"loss": loss}
    model.zero_grad()
    assert_alike(found, by_autograd(model, batch(3, 9)))


def test_unknown_field_is_refused():
    class Wider(ModelConfig):
        softcap: float = 0.0

    config = Wider(**PLAIN)
    assert (
        fast.unknown_field(config, fast.TRAINED)
        == fast.unknown_field(config, fast.DECODED)
        == "softcap is not known to fast/"
    )
