"""A step of decoding that differs from the reference is refused, and the reference steps instead."""

import pytest
import torch

from fast_helpers import expected, read
from gptloom import fast
from gptloom.fast import decode
from gptloom.fast.decode import Stepper, make_stepper
from gptloom.fast.decode_torch import MANY, TensorKit
from gptloom.model.transformer import Decoder
from model_helpers import CONFIGS, SMALL, build, call, random_ids

T = SMALL["block_size"]


@pytest.mark.parametrize("fault", ["position", "n-grams", "mask"])
@pytest.mark.parametrize("rows", [5, MANY])
def test_steps_that_differ_from_the_reference_are_not_used(fault, rows, monkeypatch):
    """The second fault is the one that a prototype had: text without its n-grams is plausible nonsense."""
    right = TensorKit._uneven

    def wrong(kit, positions):
        found = right(kit, positions)
        match fault:
            case "position":
                return found._replace(where=found.where - 1)
            case "n-grams":
                return found._replace(begins=torch.ones(len(positions), 1, dtype=torch.bool))
            case _:
                return found._replace(bias=torch.zeros_like(found.bias))

    monkeypatch.setattr(TensorKit, "_uneven", wrong)
    model = build(CONFIGS["ngrams"])
    stepper = Stepper(model)
    texts = [random_ids(1, 1 + row % 7, seed=row)[0].tolist() for row in range(rows)]
    state = read(model, texts, stepper)
    texts = [[*text, 3] for text in texts]
    torch.testing.assert_close(stepper.uneven([3] * rows, state), expected(model, texts), atol=2e-5, rtol=1e-5)
    assert not stepper._trusts_uneven(rows)
    assert Stepper(model, compare=False)._trusts_uneven(rows)  # for whoever looks for such differences


@pytest.mark.parametrize("strange", ["field", "parameter", "layer", "class"])
def test_a_model_that_the_straight_lines_do_not_follow_takes_the_slow_way(strange, monkeypatch):
    model, ids = build(CONFIGS["tiny"]), random_ids(2, T)
    match strange:
        case "field":
            monkeypatch.delitem(fast.DECODED, "positions")
        case "parameter":
            model.blocks[0].gain = torch.nn.Parameter(torch.ones(1))
        case "layer":
            model.final_norm = torch.nn.Sequential(model.final_norm, torch.nn.Tanh())
        case "class":
            model.__class__ = type("Other", (Decoder,), {})
    step, state = make_stepper(model), model.init_cache(2, T)
    assert isinstance(step, decode.Reference)
    torch.testing.assert_close(step(ids[:, :4].tolist(), state), call(model, ids)[:, 3], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(step(ids[:, 4:5].tolist(), state), call(model, ids)[:, 4], atol=1e-5, rtol=1e-5)
    assert isinstance(make_stepper(build(CONFIGS["tiny"])), decode.Reference if strange == "field" else decode.Stepper)
