"""Settings: all errors in one message, layers over a recipe, and a file with all settings."""

import tomllib
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axes import every_recipe
from gptloom.config.base import Config, field_names
from gptloom.config.load import merge, nest, parse, read_recipe, read_toml, resolve, to_toml
from gptloom.config.model import ModelConfig
from gptloom.config.run import DataConfig, RunConfig, SampleConfig, TrainConfig
from gptloom.errors import ConfigError, InputError, nearest

ALL = [ModelConfig, DataConfig, TrainConfig, SampleConfig, RunConfig]


# --- the fields -----------------------------------------------------------------------------------


def test_every_field_says_what_it_is():
    silent = [
        f"{cls.__name__}.{name}"
        for cls in ALL
        for name, field in cls.model_fields.items()
        if not field.description or field.description.strip() != field.description
    ]
    assert silent == []
    assert [cls.__name__ for cls in ALL if not cls.__doc__] == []


def test_the_model_s_shape_is_at_most_30_flat_fields():
    assert len(ModelConfig.model_fields) <= 30
    for name, field in ModelConfig.model_fields.items():
        parts = get_args(field.annotation) or (field.annotation,)
        assert not any(isinstance(part, type) and issubclass(part, Config) for part in parts), name


@pytest.mark.parametrize("cls", ALL)
def test_the_defaults_are_valid_and_frozen(cls):
    config = cls()
    assert parse(cls, config.model_dump(), where="test") == config
    name = next(iter(cls.model_fields))
    with pytest.raises(ValueError, match="frozen"):
        setattr(config, name, getattr(config, name))


def test_field_names_walks_the_groups():
    names = field_names(RunConfig)
    assert {"seed", "model.n_layer", "train.learning_rate", "data.tokenizer"} <= names.keys()
    assert not {"model", "train", "data"} & names.keys()
    assert len(names) == sum(len(cls.model_fields) for cls in (ModelConfig, DataConfig, TrainConfig, RunConfig)) - 3


# --- parse ----------------------------------------------------------------------------------------


def test_every_wrong_key_is_named_at_once_with_what_is_meant():
    with pytest.raises(ConfigError) as caught:
        parse(
            RunConfig,
            {"model": {"n_layrs": 3, "dropout": 2.0, "mixer": "maen"}, "train": {"lerning_rate": 1}, "sede": 3},
            where="file.toml",
        )
    error = caught.value
    assert error.where == "file.toml"
    assert error.code == 2
    for part in (
        r"model.n_layrs: unknown setting; did you mean model.n_layer",
        r"train.lerning_rate: unknown setting; did you mean train.learning_rate",
        r"sede: unknown setting; did you mean seed",
        r"model.dropout: expected a number, at least 0 and below 1, not 2.0",
        r"model.mixer: expected one of attention, mean, none, not 'maen'",
    ):
        assert part in error.what
    assert error.what.count(" | ") == 4
    assert "\n" not in error.line()


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (TrainConfig, {"steps": 5, "minutes": 1.0}, "steps and minutes exclude one another"),
        (TrainConfig, {"batch_size": 6, "micro_batch_size": 4}, "micro_batch_size=4 does not divide batch_size=6"),
        (RunConfig, {"train": {"steps": 5, "epochs": 1.0}}, "steps and epochs exclude one another"),
        (TrainConfig, {"steps": 0}, "steps: expected a whole number, at least 1 and at most 2,147,483,647, not 0"),
        (TrainConfig, {"steps": "many"}, "steps: .* not 'many'"),
        (TrainConfig, {"learning_rate": float("nan")}, "learning_rate"),
        (TrainConfig, {"learning_rate": -1}, "learning_rate: expected a number, above 0, not -1"),
        (SampleConfig, {"top_p": 0.0}, "top_p: .*above 0"),
        (SampleConfig, {"temperature": -0.1}, "temperature: .* not -0.1"),
        (SampleConfig, {"temperature": float("inf")}, "temperature: expected a number, at least 0, not inf"),
        (SampleConfig, {"repetition_penalty": 0.5}, "repetition_penalty"),
        (DataConfig, {"val_fraction": 1.0}, "val_fraction: .* not 1.0"),
        (RunConfig, {"seed": 2**63}, "seed"),
        (RunConfig, {"model": 5}, "model"),
        (RunConfig, {"xyz": 5}, "xyz: unknown setting; `gptloom train --help`"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_received(cls, values, message):
    with pytest.raises(ConfigError, match=message) as caught:
        parse(cls, values, where="here")
    assert caught.value.line().startswith("here: ")


def test_strings_are_read_as_the_field_s_type():
    config = parse(TrainConfig, {"steps": "100", "learning_rate": "1e-3", "tensorboard": "true"}, where="flags")
    assert (config.steps, config.learning_rate, config.tensorboard) == (100, 1e-3, True)


@pytest.mark.parametrize(
    ("word", "clause"),
    [("dropuot", "did you mean dropout?"), ("zzzz", ""), ("n_head", "did you mean n_head or n_kv_head?")],
)
def test_nearest(word, clause):
    assert nearest(word, ["n_layer", "n_head", "n_kv_head", "dropout"]) == clause


# --- layers ---------------------------------------------------------------------------------------

trees = st.recursive(
    st.integers(), lambda below: st.dictionaries(st.sampled_from("abc"), below, min_size=1, max_size=3), max_leaves=8
)
mappings = st.dictionaries(st.sampled_from("abc"), trees, max_size=3)


def leaves(tree, path=()):
    return (
        {path: tree}
        if not isinstance(tree, dict)
        else {k: v for key, below in tree.items() for k, v in leaves(below, (*path, key)).items()}
    )


@given(mappings, mappings)
def test_merge_keeps_every_change_and_what_it_does_not_touch(base, changes):
    before, merged = repr(base), merge(base, changes)
    assert repr(base) == before
    assert leaves(changes).items() <= leaves(merged).items()
    touched = leaves(changes).keys()
    for path, value in leaves(base).items():
        overlaps = any(path[: len(t)] == t or t[: len(path)] == path for t in touched)
        assert overlaps or leaves(merged)[path] == value
    assert merge(merged, changes) == merged


def test_nest_by_hand():
    assert nest({"seed": 1, "model.n_layer": 2, "model.n_head": 3, "train.steps": 4}) == {
        "seed": 1,
        "model": {"n_layer": 2, "n_head": 3},
        "train": {"steps": 4},
    }
    assert nest({}) == {}


@given(mappings)
def test_nest_undoes_flattening(tree):
    full = {".".join(path): value for path, value in leaves(tree).items()}
    assert leaves(nest(full)) == leaves(tree)


def test_later_layers_win_and_the_recipe_is_below_them_all():
    config = resolve("tiny", {"model": {"n_layer": 2}, "seed": 5}, {"model": {"n_embd": 64}, "seed": 6})
    assert (config.model.n_layer, config.model.n_embd, config.seed, config.recipe) == (2, 64, 6, "tiny")
    assert config.model.mlp == read_recipe("tiny")["model"]["mlp"]
    assert resolve("tiny") == resolve("tiny", {}, {})


@pytest.mark.parametrize("length", [{"steps": 10}, {"epochs": 0.5}, {"minutes": 9.0}])
@every_recipe
def test_a_length_replaces_the_length_below(recipe, length):
    train = resolve(recipe, {"train": {"minutes": 1.0}}, {"train": length | {"batch_size": 512}}).train
    assert {
        name: getattr(train, name) for name in ("steps", "minutes", "epochs") if getattr(train, name) is not None
    } == length
    assert train.batch_size == 512


def test_a_layer_without_a_length_keeps_the_one_below():
    assert resolve("tiny", {"train": {"batch_size": 8}}).train.minutes == 1.0
    assert resolve("tiny", {"train": {"steps": 3}}, {"train": {"batch_size": 8}}).train.steps == 3


def test_two_lengths_in_one_layer_are_refused():
    with pytest.raises(ConfigError, match="steps and minutes exclude one another"):
        resolve("tiny", {"train": {"steps": 3, "minutes": 1.0}})


@pytest.mark.parametrize("layer", [{"train": 5}, {"train": None}, {"train": "steps"}, {"model": [1]}, {"data": 3}])
def test_a_group_that_is_not_a_group_is_refused(layer):
    with pytest.raises(ConfigError, match=next(iter(layer))):
        resolve("tiny", layer, where="my.toml")


def test_recipes_cannot_be_changed_by_their_users():
    read_recipe("tiny")["model"]["n_layer"] = 99
    resolve("tiny", {"train": {"steps": 3}})
    assert resolve("tiny").model.n_layer == 4
    assert resolve("tiny").train.minutes == 1.0


def test_an_unknown_recipe_is_refused():
    with pytest.raises(ConfigError, match=r"no recipe 'modrn'.*did you mean modern"):
        resolve("modrn")
    with pytest.raises(ConfigError, match=r"choose from .*tiny"):
        resolve("../../secrets")


# --- as a file ------------------------------------------------------------------------------------


@every_recipe
def test_a_run_s_settings_survive_their_file(recipe):
    config = resolve(
        recipe,
        {
            "train": {"steps": 3, "sample_prompt": 'a "quoted"\n\ttab \\ é🙂'},
            "data": {"tokenizer": "bpe:512", "cache": "C:\\x"},
        },
    )
    again = parse(RunConfig, tomllib.loads(to_toml(config)), where="config.toml")
    assert again == config
    assert resolve(recipe, tomllib.loads(to_toml(config))) == config


def test_the_file_names_every_setting_that_is_set():
    values = tomllib.loads(to_toml(resolve("modern")))
    names = {name for name, field in field_names(RunConfig).items() if field.default is not None}
    flat = {".".join(path) for path in leaves(values)}
    assert names <= flat


def test_read_toml_says_what_is_wrong(tmp_path):
    good, bad, binary = (tmp_path / name for name in ("good.toml", "bad.toml", "binary.toml"))
    good.write_text('[model]\nn_layer = 2\n[data]\ntokenizer = "é"\n', encoding="utf-8")
    bad.write_text("[model]\nn_layer = \n", encoding="utf-8")
    binary.write_bytes(b"a = '\xff'")
    assert read_toml(good) == {"model": {"n_layer": 2}, "data": {"tokenizer": "é"}}
    with pytest.raises(InputError, match=r"bad.toml: is not valid TOML: .*line 2"):
        read_toml(bad)
    with pytest.raises(InputError, match=r"binary.toml: is not UTF-8 text"):
        read_toml(binary)
    with pytest.raises(InputError, match=r"nothing.toml: cannot be read: No such file"):
        read_toml(tmp_path / "nothing.toml")
