"""The recipes are valid, and agree with the publications that they are named after."""

import pytest

from gptloom.config.load import read_recipe, recipe_names, resolve
from gptloom.model.transformer import Decoder


def faults(name):
    """What is wrong with a recipe's file."""
    config = resolve(name)
    if config.recipe != name:
        yield f"calls itself {config.recipe}"
    if [config.train.steps, config.train.minutes, config.train.epochs].count(None) != 2:
        yield "has not one length"
    yield from (
        f"unknown table {table}" for table in set(read_recipe(name)) - {"recipe", "seed", "data", "model", "train"}
    )


def test_recipes_are_valid_runs_of_a_known_length():
    assert [f"{name}: {fault}" for name in recipe_names() for fault in faults(name)] == []


def test_the_recipes_are_those_that_the_documents_name():
    assert recipe_names() == ["baby", "encoder", "gpt2", "lstm", "mingpt", "modern", "modern-tiny", "tiny", "translate"]
    assert Decoder.from_recipe.__doc__ is not None
    assert all(name in Decoder.from_recipe.__doc__ for name in recipe_names())


def test_mingpt_is_the_lecture_s_run():
    """lecture/published.json, runs, "mingpt" (its source: document 003)."""
    config = resolve("mingpt")
    model, train = config.model, config.train
    assert (train.batch_size, model.block_size, model.n_embd, model.n_head, model.n_layer) == (64, 128, 192, 6, 6)
    assert (train.learning_rate, train.steps, train.beta1, train.beta2) == (5e-4, 5000, 0.9, 0.95)
    assert (train.weight_decay, train.grad_clip, config.seed) == (0.1, 1.0, 3407)
    dropouts = [model.dropout if p is None else p for p in (model.dropout, model.attn_dropout, model.embd_dropout)]
    assert dropouts == [0.1] * 3
    # "GPT-2 shape: tanh GELU, pre-LayerNorm, qkv with bias, lm_head without bias, scores scaled by head_size**-0.5;
    # N(0, 0.02) init ..."
    assert (model.mlp, model.norm, model.norm_position, model.positions) == ("gelu-tanh", "layernorm", "pre", "learned")
    assert (model.bias, model.head, model.head_bias, model.score_scale, model.init) == (
        "all",
        "linear",
        False,
        "head",
        "gpt2",
    )
    assert (train.schedule, train.warmup_steps) == ("constant", 0)
    assert train.sample_prompt == "O God, O God!"


def test_gpt2_is_gpt2_small():
    """Radford et al. (2019, table 2) and the released model; Adam as in Brown et al. (2020, table 2.1, appendix B)."""
    config = resolve("gpt2")
    model, train = config.model, config.train
    assert (model.vocab_size, model.block_size, model.n_layer, model.n_head, model.n_embd) == (50257, 1024, 12, 12, 768)
    assert (model.head, model.bias, model.mlp, model.norm, model.norm_position, model.dropout) == (
        "tied",
        "all",
        "gelu-tanh",
        "layernorm",
        "pre",
        0.0,
    )
    assert config.data.tokenizer == "tiktoken:gpt2"
    assert (train.learning_rate, train.beta1, train.beta2, train.weight_decay, train.grad_clip) == (
        6e-4,
        0.9,
        0.95,
        0.1,
        1.0,
    )
    assert train.batch_size * model.block_size == 2**19  # half a million tokens


def test_baby_is_nanogpt_s():
    """nanoGPT, config/train_shakespeare_char.py."""
    config = resolve("baby")
    model, train = config.model, config.train
    assert (model.block_size, model.n_layer, model.n_head, model.n_embd, model.dropout) == (256, 6, 6, 384, 0.2)
    assert (model.bias, model.head, model.mlp) == ("none", "tied", "gelu")
    assert (train.batch_size, train.learning_rate, train.steps, train.warmup_steps, train.beta2) == (
        64,
        1e-3,
        5000,
        100,
        0.99,
    )
    assert train.learning_rate * train.final_lr_fraction == pytest.approx(1e-4)


@pytest.mark.parametrize("name", ["modern", "modern-tiny"])
def test_the_modern_recipes_keep_to_the_shape_of_qwen3(name):
    model = resolve(name).model
    assert (model.norm, model.norm_position, model.positions, model.qk_norm) == ("rmsnorm", "pre", "rotary", True)
    assert (model.mlp, model.bias, model.mixer, model.residual, model.score_scale) == (
        "swiglu",
        "none",
        "attention",
        "add",
        "head",
    )
    assert model.kv_heads < model.n_head
    assert model.head in ("tied", "linear")


def test_a_recipe_of_another_kind_of_model_is_not_built_as_a_gpt():
    for name in ("lstm", "translate"):
        with pytest.raises(ValueError, match="build_model"):
            Decoder.from_recipe(name)
