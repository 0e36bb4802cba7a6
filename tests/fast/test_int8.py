"""Weights stored as int8: their errors, the equality of all ways to multiply with them, and the commands."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

import gptloom
from axes import every_config
from gptloom.cli.main import main
from gptloom.config.model import ModelConfig
from gptloom.config.run import SampleConfig
from gptloom.errors import ConfigError
from gptloom.fast import decode, decode_numpy, int8
from gptloom.fast.decode import Stepper
from gptloom.fast.decode_torch import MANY
from gptloom.fast.int8 import FEW, NARROWEST, Int8Linear, digit_product, quantise
from gptloom.generate.batch import DecodeBatch
from gptloom.model.build import build_model
from model_helpers import CACHING, CONFIGS, SMALL, build, random_ids
from training_helpers import small_run, write_text

T = SMALL["block_size"]
numbers = st.just(0.0) | st.floats(2.0**-66, 2.0**66, width=32) | st.floats(-(2.0**66), -(2.0**-66), width=32)


def layer_of(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Int8Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight = nn.Parameter(weight)
    if bias is not None:
        layer.bias = nn.Parameter(bias)
    return Int8Linear(layer)


@given(weight=hnp.arrays("float32", st.tuples(st.integers(1, 5), st.integers(1, 9)), elements=numbers))
def test_each_weight_is_within_half_a_step_of_what_it_was(weight):
    weight = torch.from_numpy(weight)
    layer = layer_of(weight)
    steps = weight.double().abs().amax(dim=1, keepdim=True) / 127
    assert ((layer.weight.double() - weight.double()).abs() <= steps * (0.5 + 1e-4)).all()
    assert layer.numbers.dtype == torch.int8 and layer.numbers.min() >= -127


@settings(max_examples=60)
@given(
    rows=st.integers(1, FEW + 2),
    width=st.integers(1, 300),
    out=st.integers(1, 70),
    seed=st.integers(0, 1000),
    size=st.integers(-60, 60),
    bias=st.booleans(),
)
def test_a_product_is_that_of_the_matrix_as_float64(rows, width, out, seed, size, bias):
    """To the precision of float32, for any number and size of vectors."""
    draws = torch.Generator().manual_seed(seed)
    layer = layer_of(torch.randn(out, width, generator=draws), torch.randn(out, generator=draws) if bias else None)
    x = torch.randn(rows, width, generator=draws) * 2.0**size
    right = F.linear(
        x.double(),
        layer.numbers.double() * layer.scale.double()[:, None],
        None if layer.bias is None else layer.bias.double(),
    )
    bound = F.linear(x.abs().amax(dim=1, keepdim=True).expand_as(x).double(), layer.weight.abs().double()) + (
        0 if layer.bias is None else layer.bias.abs().double()
    )
    with torch.inference_mode():
        assert ((layer(x).double() - right).abs() <= 5e-7 * bound).all()
        assert layer.takes_digits == (width >= NARROWEST and int8.multiplies_integers())


@given(rows=st.integers(1, FEW), width=st.integers(NARROWEST, 200), out=st.integers(1, 70), seed=st.integers(0, 1000))
def test_digits_multiply_exactly_where_any_processor_would(rows, width, out, seed):
    """On matrices of small numbers, whose sums no machine saturates, so that a failure is an error of ours."""
    draws = torch.Generator().manual_seed(seed)
    x, matrix = (
        torch.randn(rows, width, generator=draws),
        torch.randint(-60, 61, (out, width), generator=draws, dtype=torch.int8),
    )
    right, bound = (
        x.double() @ matrix.double().t(),
        x.abs().amax(dim=1, keepdim=True).double() * matrix.abs().sum(dim=1).double(),
    )
    assert ((digit_product(x, matrix, torch.ones(out)).double() - right).abs() <= 5e-7 * bound + 1e-12).all()


def test_nothing_but_zeros_stays_nothing():
    layer = layer_of(torch.zeros(3, 5))
    assert torch.equal(layer(torch.ones(2, 5)), torch.zeros(2, 3))
    assert torch.equal(layer_of(torch.ones(3, 5))(torch.zeros(2, 5)), torch.zeros(2, 3))


@every_config
@pytest.mark.parametrize(("rows", "digits"), [(1, True), (1, False), (3, True), (3, False), (MANY, True)])
def test_every_path_is_that_of_the_rounded_float32_model(name, rows, digits, monkeypatch):
    """The reference is a model of plain layers with the rounded matrices.

    `digits` is False for a machine that does not multiply int8 exactly.
    """
    monkeypatch.setattr(decode_numpy, "SMALL", 1)
    if not digits:
        monkeypatch.setattr(int8, "multiplies_integers", lambda: False)
    trained, ids = build(CONFIGS[name]), random_ids(rows, T)
    before = copy.deepcopy(trained.state_dict())
    model, plain = quantise(trained), copy.deepcopy(trained)
    for place, layer in model.named_modules():
        assert type(layer) is not nn.Linear
        if isinstance(layer, Int8Linear):
            plain.get_submodule(place).weight = nn.Parameter(layer.weight)
    assert all(
        torch.equal(value, before[key]) for key, value in trained.state_dict().items()
    )  # the given model does not change
    with torch.inference_mode():
        whole = plain(ids)
        torch.testing.assert_close(model(ids), whole, atol=1e-5, rtol=1e-5)
        step, state = Stepper(model), model.init_cache(rows, T)
        assert isinstance(step.single, decode.Line)  # one row has separate code
        torch.testing.assert_close(step(ids[:, :4].tolist(), state), whole[:, 3], atol=1e-5, rtol=1e-5)
        for position in range(4, T):
            torch.testing.assert_close(
                step(ids[:, position : position + 1].tolist(), state), whole[:, position], atol=1e-5, rtol=1e-5
            )


def test_a_tied_head_is_rounded_and_its_table_is_not():
    trained = build(CONFIGS["gpt2"])
    model = quantise(trained)
    assert model.token_table.weight is trained.token_table.weight is trained.head.weight
    assert isinstance(model.head, Int8Linear) and not torch.equal(model.head.weight, trained.head.weight)


@pytest.mark.parametrize("name", ["gpt2", "ngrams"])
def test_texts_are_the_same_with_the_cache_and_without(name):
    assert name in CACHING
    model = quantise(build(CONFIGS[name]))

    def written(cached):
        batch = DecodeBatch(model, cached=cached)
        batch.add([1, 2], SampleConfig(tokens=3 * T, temperature=0.0))
        return [token.id for step in iter(batch.step, {}) for token in step.values()]

    assert written(True) == written(False)


@pytest.mark.parametrize("architecture", ["encoder", "encoder-decoder"])
def test_neighbours_with_blocks_have_int8_weights_too(architecture):
    trained = build_model(ModelConfig(**SMALL, architecture=architecture)).eval()
    model, ids = quantise(trained), random_ids(2, T)
    call = (lambda one: one(ids, ids)) if architecture == "encoder-decoder" else (lambda one: one(ids))
    with torch.inference_mode():
        assert 0 < (call(model) - call(trained)).abs().max() < 0.05


def test_a_recurrent_model_and_another_device_are_refused():
    with pytest.raises(ConfigError, match="not supported for the architecture lstm"):
        quantise(build_model(ModelConfig(**SMALL, architecture="lstm")))
    with pytest.raises(ConfigError, match="on a CPU, not on meta"):
        quantise(build(CONFIGS["gpt2"]).to("meta"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("int8")
    small_run(write_text(folder), folder / "run", model={"head": "tied"}, train={"steps": 60, "learning_rate": 1e-2})
    return folder / "run"


def test_a_bundle_with_int8_weights_is_not_saved(run, tmp_path):
    bundle = gptloom.load(run, device="cpu", weights="int8")
    for save in (lambda: bundle.save(tmp_path), bundle.model.state_dict):
        with pytest.raises(ConfigError, match="int8 weights are for sampling and evaluation; they cannot be saved"):
            save()
    assert list(tmp_path.iterdir()) == []


def test_eval_tells_what_int8_costs(run, capsys):
    whole, rounded = (gptloom.load(run, device="cpu", weights=weights) for weights in ("float32", "int8"))
    assert main(["eval", str(run), "--device", "cpu", "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert main(["eval", str(run), "--device", "cpu", "--json", "--weights", "int8"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found.keys() - plain.keys() == {"weights", "float32_loss", "difference"} and found["weights"] == "int8"
    assert (
        found["float32_loss"] == plain["loss"]
        and found["difference"] == found["loss"] - plain["loss"]
        and 0 < abs(found["difference"]) < 0.02
    )
    text = run.parent / "some.txt"
    text.write_text("the quick brown fox", encoding="utf-8")
    assert main(["eval", str(run), "--device", "cpu", "--text", str(text), "--weights", "int8"]) == 0
    losses = [model.score("the quick brown fox").loss for model in (rounded, whole)]
    said = capsys.readouterr().out
    assert (
        f"loss {losses[0]:.4f} nats" in said
        and f"the loss is {losses[1]:.4f} (a difference of {losses[0] - losses[1]:+.5f})" in said
    )


def test_sample_writes_with_int8_weights(run, capsys):
    assert (
        main(
            ["sample", str(run), "--device", "cpu", "--prompt", "the", "--tokens", "12", "--json", "--weights", "int8"]
        )
        == 0
    )
    found = json.loads(capsys.readouterr().out)["samples"][0]
    (written,) = gptloom.load(run, device="cpu", weights="int8").write("the", SampleConfig(tokens=12), details=3)
    assert [token["logprob"] for token in found["tokens"]] == [round(token.logprob, 6) for token in written.tokens]
    (other,) = gptloom.load(run, device="cpu").write("the", SampleConfig(tokens=12), details=3)
    assert [token.logprob for token in other.tokens] != [token.logprob for token in written.tokens]
