"""The model's fields: what does not fit together is refused with a cure."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptloom.config.load import parse
from gptloom.config.model import ModelConfig
from gptloom.errors import ConfigError
from gptloom.model.transformer import Decoder


def test_from_recipe_names_the_nearest_field_or_recipe():
    with pytest.raises(ConfigError, match=r"recipe tiny: n_layrs.*did you mean n_layer"):
        Decoder.from_recipe("tiny", n_layrs=2)
    with pytest.raises(ConfigError, match=r"no recipe 'gpt3'.*did you mean gpt2"):
        Decoder.from_recipe("gpt3")
    assert Decoder.from_recipe("tiny", vocab_size=11, n_embd=32).config.n_embd == 32


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_head": 5, "n_embd": 384}, r"n_head=5 does not divide n_embd=384; nearby: 4, 6 \(model.n_head\)"),
        ({"n_head": 12, "n_embd": 7 * 11}, r"nearby: 11, 77 "),
        ({"n_head": 6, "n_embd": 36, "n_kv_head": 4}, r"n_kv_head=4 does not divide n_head=6"),
        ({"n_head": 4, "n_embd": 4, "n_kv_head": 8}, r"n_kv_head=8 does not divide n_head=4"),
        ({"n_head": 4, "n_embd": 12, "positions": "rotary"}, r"even head width, and n_embd=12 / n_head=4 gives 3"),
        (
            {"n_head": 2, "n_embd": 16, "head_size": 4, "output_projection": False},
            r"2 x 4 is not 16 \(model.head_size\)",
        ),
        ({"n_embd": 15, "n_head": 3, "positions": "sinusoidal"}, r"even width, not n_embd=15"),
        ({"head": "none"}, r"n_layer=0 and positions='none'"),
        ({"head": "none", "n_layer": 0}, r"n_layer=0 and positions='none'"),
        ({"dropout": 1.0}, r"dropout: .*below 1"),
        ({"dropout": float("nan")}, r"dropout"),
        ({"rope_theta": float("inf")}, r"rope_theta"),
        ({"mixer": "lstm"}, r"mixer: .*attention, mean, none, not 'lstm'"),
        ({"n_head": 0}, r"n_head: .*, not 0"),
    ],
)
def test_fields_that_do_not_fit_together_are_refused_with_a_cure(fields, message):
    with pytest.raises(ConfigError, match=message):
        parse(ModelConfig, fields, where="test")


def test_heads_are_not_checked_where_there_are_none():
    assert ModelConfig(n_layer=0, n_embd=15, n_head=4).width_per_head == 3
    assert ModelConfig(mixer="none", n_embd=15, n_head=4).mixer == "none"


@settings(max_examples=25)
@given(n_head=st.integers(1, 40), n_embd=st.integers(1, 200))
def test_the_head_counts_that_an_error_proposes_work(n_head, n_embd):
    if n_embd % n_head == 0:
        assert ModelConfig(n_head=n_head, n_embd=n_embd).width_per_head * n_head == n_embd
        return
    with pytest.raises(ConfigError, match="nearby: ") as caught:
        ModelConfig(n_head=n_head, n_embd=n_embd)
    near = [int(word) for word in str(caught.value).split("nearby: ")[1].split(" (")[0].split(",")]
    assert near
    assert all(ModelConfig(n_head=one, n_embd=n_embd) for one in near)
