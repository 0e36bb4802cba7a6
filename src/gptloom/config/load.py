"""Load settings from mappings, TOML files and recipes; merge, check and save them."""

import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar

import tomli_w
from pydantic import ValidationError

from gptloom.config.base import Config, refuse
from gptloom.config.run import RunConfig
from gptloom.errors import ConfigError, InputError, nearest, shortened
from gptloom.files import read_text

AnyConfig = TypeVar("AnyConfig", bound=Config)

SHORT = {f"train.{name}": name for name in ("steps", "minutes", "epochs")} | {
    f"data.{name}": name for name in ("tokenizer", "encoding", "on_unknown")
}
"""Settings that also have a name without their group, as flags and as keyword arguments."""

ALIASES = {
    "lr": "train.learning_rate",
    "batch": "train.batch_size",
    "warmup": "train.warmup_steps",
    "layers": "model.n_layer",
    "heads": "model.n_head",
    "width": "model.n_embd",
    "context": "model.block_size",
}
"""Common short names of some settings."""

DEFAULTS = ("tiny", "baby", "translate")
"""Default recipes: on a CPU, on an accelerator, for number words."""

LONGEST_TOML = 1 << 14
"""Maximum size of a settings file in bytes; a complete one has 3,000.

Python's parser takes time quadratic in the length of a dotted key.
"""


def parse(cls: type[AnyConfig], values: Mapping[str, Any], *, where: str) -> AnyConfig:
    """Check a nested mapping and build the settings from it.

    Args:
        cls: the group to build.
        values: key to value; strings are converted to the field's type.
        where: the file or command line that the values came from.

    Raises:
        ConfigError: names every wrong key, with the received value and the expected ones.
    """
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        refuse(cls, values, error, where)


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two nested mappings; values of `changes` replace those of `base`."""
    merged = dict(base)
    for key, value in changes.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Convert {"model.n_layer": 4} to {"model": {"n_layer": 4}}."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *groups, name = key.split(".")
        for group in reversed(groups):
            name, value = group, {name: value}
        nested = merge(nested, {name: value})
    return nested


def bare_names(keys: Iterable[str]) -> dict[str, str]:
    """Return {name without a group: dotted key}: the names that only one of the keys has, and the `ALIASES`."""
    named: dict[str, list[str]] = {}
    for key in keys:
        named.setdefault(key.rpartition(".")[2], []).append(key)
    unique = {name: found[0] for name, found in named.items() if len(found) == 1}
    return unique | {alias: key for alias, key in ALIASES.items() if key in unique.values()}


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file as a nested dict.

    Raises:
        InputError: the file cannot be read, is too large, or is not TOML (with the line number).
    """
    text = read_text(path, limit=LONGEST_TOML)
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise InputError(
            "is nested too deeply", where=str(path), cure="write the settings in separate tables"
        ) from None
    except ValueError as error:  # bad TOML, and numbers of thousands of digits
        raise InputError(f"is not valid TOML: {error}", where=str(path), cure="correct that line") from None


def recipe_names() -> list[str]:
    """Names of the built-in recipes."""
    return sorted(
        p.name.removesuffix(".toml")
        for p in resources.files("gptloom.config").joinpath("recipes").iterdir()
        if p.name.endswith(".toml")
    )


def read_recipe(name: str) -> dict[str, Any]:
    """Read a recipe as a nested dict that includes its name."""
    return tomllib.loads(_recipe_text(name)) | {"recipe": name}


def about_recipe(name: str) -> str:
    """Return a recipe's description: the comment at its beginning, in one line."""
    lines = _recipe_text(name).splitlines()
    return " ".join(line.lstrip("# ") for line in takewhile(lambda line: line.startswith("#"), lines))


def _recipe_text(name: str) -> str:
    if name not in recipe_names():
        raise ConfigError(
            f"there is no recipe {shortened(name, 40)!r}",
            where="recipe",
            cure=nearest(name, recipe_names()) or f"choose from {', '.join(recipe_names())}",
        )
    return resources.files("gptloom.config").joinpath(f"recipes/{name}.toml").read_text(encoding="utf-8")


def resolve(base: str | RunConfig, *layers: Mapping[str, Any], where: str = "settings") -> RunConfig:
    """Apply layers of nested settings to a recipe or to other settings, and check the result.

    Args:
        base: the name of a recipe, or settings.
        layers: nested settings, in order. A run length in a layer replaces an earlier one of any kind.
        where: the file or command line that the layers came from.

    Raises:
        ConfigError: there is no such recipe, or a setting is wrong.
    """
    values = read_recipe(base) if isinstance(base, str) else base.model_dump()
    for layer in layers:
        lengths = {"steps", "minutes", "epochs"}
        if isinstance(layer.get("train"), Mapping) and lengths & set(layer["train"]):
            values["train"] = {k: v for k, v in values.get("train", {}).items() if k not in lengths}
        values = merge(values, layer)
    return parse(RunConfig, values, where=where)


def check_early(recipe: str | None, file: Mapping[str, Any], changes: Mapping[str, Any], *, where: str) -> None:
    """Find mistakes before PyTorch is imported, which takes seconds.

    If no recipe is named, a mistake that occurs with only some of `DEFAULTS` is left to `resolve`.

    Raises:
        ConfigError: as `resolve`.
    """
    found, named = [], recipe or file.get("recipe")
    for name in [str(named)] if named else DEFAULTS:
        try:
            resolve(name, {key: value for key, value in file.items() if key != "recipe"}, changes, where=where)
            return
        except ConfigError as error:
            found.append(error)
    alike = len({error.line() for error in found}) == 1
    raise (
        found[0]
        if alike
        else ConfigError(found[0].what, where=f"{where}, with the recipe {DEFAULTS[0]}", cure=found[0].cure)
    )


def to_toml(config: Config) -> str:
    """Format all settings as TOML. A setting that is None has no line, because TOML has no null."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))
