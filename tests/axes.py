"""The axes that several tests share: each is a decorator that runs a test once for every value."""

import pytest

from gptloom.config.load import recipe_names, resolve
from gptloom.config.model import ModelConfig
from model_helpers import CACHING, CONFIGS

RECURRENT = ("rnn", "lstm", "gru")
NEIGHBOURS = ("encoder", "encoder-decoder", *RECURRENT)
TOKENIZERS = ("char", "byte", "bpe", "sentencepiece", "tiktoken", "cl100k")

every_config = pytest.mark.parametrize("name", CONFIGS)
every_caching_config = pytest.mark.parametrize("name", CACHING)
every_recipe = pytest.mark.parametrize("recipe", recipe_names())
every_config_and_recipe = pytest.mark.parametrize("name", [*CONFIGS, *(f"recipe {name}" for name in recipe_names())])

every_architecture = pytest.mark.parametrize("architecture", ["decoder", *NEIGHBOURS])
every_neighbour = pytest.mark.parametrize("architecture", NEIGHBOURS)
every_recurrent = pytest.mark.parametrize("architecture", RECURRENT)

every_tokenizer = pytest.mark.parametrize("kind", TOKENIZERS)
every_sampling = pytest.mark.parametrize("sampling", ["random", "shuffled", "documents"])
every_sampling_of_one_text = pytest.mark.parametrize("sampling", ["random", "shuffled"])
every_world = pytest.mark.parametrize("world", [2, 3, 4, 6])


def model_config(name: str) -> ModelConfig:
    """The model of a name in `every_config_and_recipe`."""
    return CONFIGS[name] if name in CONFIGS else resolve(name.removeprefix("recipe ")).model
