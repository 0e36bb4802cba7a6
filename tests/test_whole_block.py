"""A block's two passes written by hand, against the same block by autograd."""

import pytest
import torch
from torch import nn

from conftest import CONFIGS, SMALL, build, random_ids
from gptloom.config.model import ModelConfig
from gptloom.fast import whole_block
from gptloom.model import transformer
from gptloom.model.cache import Context
from gptloom.model.layers import MLP
from gptloom.model.loss import Objective

MORE = {
    "tanh": {"mlp": "gelu-tanh", "head": "tied", "score_scale": "embedding"},
    "rms with biases": {"norm": "rmsnorm", "mlp": "relu2", "qk_norm": True, "positions": "none"},
    "swiglu with biases": {"mlp": "swiglu", "positions": "rotary", "head_size": 6, "n_head": 2},
}
ALL = CONFIGS | {name: ModelConfig(**SMALL | fields) for name, fields in MORE.items()}
PLANNED = [name for name, config in ALL.items() if config.n_layer and whole_block.make_plan(config)]


def both_ways(config, monkeypatch, use):
    """What `use` finds with the passes by hand and without; the first must have taken them."""
    calls = []
    real = transformer.whole_block
    monkeypatch.setattr(transformer, "whole_block", lambda *given: calls.append(1) or real(*given))
    by_hand = use(build(config).double())
    assert calls
    monkeypatch.setattr(transformer, "pays", lambda x, context: False)
    calls.clear()
    plain = use(build(config).double())
    assert not calls
    return by_hand, plain


def test_the_blocks_that_recipes_train_have_a_plan():
    assert {"lecture", "tiny", "ngrams"} <= set(PLANNED)
    assert not {"gpt2", "mean", "position-wise", "single-head", "original", "no-residual", "multi-query", "modern", "no-mlp"} & set(PLANNED)


@pytest.mark.parametrize("name", PLANNED)
def test_the_loss_and_every_gradient_are_autograd_s(name, monkeypatch):
    def gradients(model):
        nats, _ = Objective(model)(random_ids(3, 9, seed=1), random_ids(3, 9, seed=2))
        nats.backward()
        return {"loss": nats.detach()} | {label: p.grad for label, p in model.named_parameters()}

    by_hand, plain = both_ways(ALL[name], monkeypatch, lambda model: gradients(model.train()))
    assert by_hand.keys() == plain.keys()
    for label, wanted in plain.items():
        torch.testing.assert_close(by_hand[label], wanted, atol=1e-11, rtol=1e-9, msg=lambda text, label=label: f"{label}: {text}")


@pytest.mark.parametrize("name", PLANNED)
def test_evaluation_is_the_same_without_gradients(name, monkeypatch):
    with torch.no_grad():
        torch.testing.assert_close(*both_ways(ALL[name], monkeypatch, lambda model: model(random_ids(2, 10))), atol=1e-12, rtol=1e-10)


def test_a_second_backward_pass_finds_what_the_first_found():
    """The passes write over what autograd hands them, but not over what they kept."""
    model = build(CONFIGS["ngrams"]).train()
    nats, _ = Objective(model)(random_ids(2, 10), random_ids(2, 10, seed=1))
    nats.backward(retain_graph=True)
    first = {label: p.grad.clone() for label, p in model.named_parameters()}
    model.zero_grad()
    nats.backward()
    assert all(torch.equal(p.grad, first[label]) for label, p in model.named_parameters())


def test_a_context_that_is_used_twice_finds_room_for_both():
    model, context = build(CONFIGS["lecture"]).double(), Context()
    for rows, time in ((2, 10), (3, 7)):
        ids = random_ids(rows, time)
        torch.testing.assert_close(model.hidden(ids, context), model.hidden(ids))


def test_long_windows_and_autocast_are_left_to_the_block(monkeypatch):
    monkeypatch.setattr(transformer, "whole_block", lambda *given: pytest.fail("taken"))
    with torch.autocast("cpu", torch.bfloat16):
        build(CONFIGS["lecture"])(random_ids(2, 10))
    monkeypatch.setattr(whole_block, "LONGEST", 9)
    build(CONFIGS["lecture"])(random_ids(2, 10))


def test_a_part_that_somebody_listens_to_is_called():
    model, heard = build(CONFIGS["lecture"]), []
    handles = [part.register_forward_hook(lambda *given: heard.append(1)) for part in model.modules() if isinstance(part, MLP)]
    model(random_ids(2, 10))
    assert len(heard) == len(handles) == model.config.n_layer


def test_another_layer_in_a_layer_s_place_is_called():
    """As adapters (LoRA) and parametrizations are put in."""
    model, ids = build(CONFIGS["lecture"]), random_ids(2, 10)
    before = model(ids)
    torch.nn.utils.parametrize.register_parametrization(model.blocks[0].mlp.down, "bias", Shifted())
    assert not torch.equal(model(ids), before)
    replaced = build(CONFIGS["lecture"])
    replaced.blocks[0].mlp.down = nn.Sequential(replaced.blocks[0].mlp.down, nn.Tanh())
    assert not torch.equal(replaced(ids), before)


class Shifted(nn.Module):
    def forward(self, x):
        return x + 1.0
