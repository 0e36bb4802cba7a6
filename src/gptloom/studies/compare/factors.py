"""The factors and arms of a comparison. A factor is a setting with several values; an arm is a full configuration."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from gptloom.config.base import field_names, flatten
from gptloom.config.load import bare_names, nest, resolve
from gptloom.config.run import RunConfig
from gptloom.errors import ConfigError, nearest

NO_FACTORS = {
    "seed": "a comparison already varies the seed; see --seeds",
    "model.vocab_size": "it follows from the tokenizer",
    **{
        f"data.{name}": "the arms must be judged on the same text; give it as a flag, for all of them"
        for name in ("text_field", "encoding", "val_fraction", "val_tokens", "val_text", "split", "cache")
    },
}
"""Settings that cannot be a factor, with the reasons."""


@dataclass(frozen=True)
class Factor:
    """A setting and its values; the baseline's is the first. A value is a string from the command line, or parsed."""

    key: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Arm:
    """One configuration of a comparison.

    Attributes:
        name: a name made of the varied values.
        config: all settings; the seed is that of the first training.
        changes: (baseline's value, this arm's value) by dotted key, for every setting that differs.
    """

    name: str
    config: RunConfig
    changes: dict[str, tuple[Any, Any]]


def is_factor(word: str) -> bool:
    """Whether a command-line word has the form KEY=VALUES; `./a=b.txt` is a path of a text."""
    return re.match(r"[A-Za-z][\w.-]*=", word) is not None


def read_factor(word: str) -> Factor:
    """Parse a word such as `lr=1e-3,4e-3`.

    Raises:
        ConfigError: the setting does not exist or cannot be a factor, or there are fewer than two values.
    """
    name, _, text = word.partition("=")
    key = find_key(name)
    values = [value.strip() for value in text.split(",")]
    if len(values) < 2 or "" in values:
        raise ConfigError(
            f"{text!r} is not two values or more",
            where=name,
            cure=f"separate them by commas, the baseline first: {name}=A,B",
        )
    can_be_unset = type(None) in get_args(field_names(RunConfig)[key].annotation)
    return Factor(key, tuple(None if value == "none" and can_be_unset else value for value in values))


def find_key(name: str) -> str:
    """Find the dotted key of a name: the key itself, or a bare name (`load.bare_names`).

    Raises:
        ConfigError: no setting has this name, or the setting cannot be a factor.
    """
    plain, known = name.replace("-", "_"), field_names(RunConfig)
    bare = bare_names(known)
    key = plain if plain in known else bare.get(plain)
    if key is None:
        hint = nearest(plain.rpartition(".")[2], bare)
        raise ConfigError("unknown setting", where=name, cure=hint or "`gptloom train --help` lists the settings")
    if key in NO_FACTORS:
        raise ConfigError("cannot be a factor", where=name, cure=NO_FACTORS[key])
    return key


def plan_arms(
    factors: Sequence[Factor], recipe: str, *layers: Mapping[str, Any], together: bool = False, where: str = "settings"
) -> list[Arm]:
    """Make the arms of a comparison. The first arm is the baseline, with every factor at its first value.

    By default, every other value of a factor is a separate arm, with all other factors at the baseline's value. With
    `together`, arm i has the i-th value of every factor.

    Args:
        factors: at least one factor; each setting may occur once.
        recipe: the recipe that the settings start from.
        layers: nested settings that replace the recipe's; later layers replace earlier ones, and factors replace all.
        together: whether all factors change at once.
        where: the place of the settings, for error messages.

    Raises:
        ConfigError: there are no factors, or they do not fit together; the message lists the errors of all arms.
    """
    keys = [factor.key for factor in factors]
    if not keys:
        raise ConfigError(
            "nothing is to be compared", where=where, cure="give a setting and two values, such as lr=1e-3,4e-3"
        )
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise ConfigError(
            f"{', '.join(twice)} is given twice", where=where, cure="give each setting once, with all its values"
        )
    if together and len({len(factor.values) for factor in factors}) > 1:
        raise ConfigError(
            "with --together every setting needs the same number of values",
            where=where,
            cure="give each as many values",
        )
    first = {factor.key: factor.values[0] for factor in factors}
    if together:
        rows = [{factor.key: factor.values[i] for factor in factors} for i in range(len(factors[0].values))]
        varied = [keys for _ in rows]
    else:
        rows = [first, *(first | {factor.key: value} for factor in factors for value in factor.values[1:])]
        varied = [keys if len(keys) == 1 else [], *([factor.key] for factor in factors for _ in factor.values[1:])]
    configs = _resolve_all(rows, recipe, layers, where)
    base = settings_of(configs[0])
    arms: list[Arm] = []
    for config, named in zip(configs, varied, strict=True):
        own = settings_of(config) | {"recipe": config.recipe}
        name = " ".join(f"{key.rpartition('.')[2]}={show(own[key])}" for key in named) or "baseline"
        same = sum(arm.name.partition(" (again")[0] == name for arm in arms)
        changes = {key: (base[key], own[key]) for key in base if base[key] != own[key]}
        arms.append(Arm(f"{name} (again{f' {same}' if same > 1 else ''})" if same else name, config, changes))
    return arms


def _resolve_all(
    rows: Sequence[Mapping[str, Any]], recipe: str, layers: Sequence[Mapping[str, Any]], where: str
) -> list[RunConfig]:
    """The settings of every arm.

    Raises:
        ConfigError: some settings are invalid; the message lists the errors of all arms.
    """
    resolve(recipe, *layers, where=where)  # an error that does not depend on the factors is reported once
    configs, wrong = [], []
    for row in rows:
        try:
            configs.append(
                resolve(
                    str(row.get("recipe", recipe)),
                    *layers,
                    nest({k: v for k, v in row.items() if k != "recipe"}),
                    where=where,
                )
            )
        except ConfigError as error:
            wrong.append(error)
    if wrong:
        cures = dict.fromkeys(error.cure for error in wrong if error.cure)
        raise ConfigError(
            " | ".join(dict.fromkeys(part for error in wrong for part in error.what.split(" | "))),
            where=wrong[0].where,
            cure="; ".join(cures),
        )
    return configs


def settings_of(config: RunConfig) -> dict[str, Any]:
    """All settings by dotted key, without the seed and the recipe's name."""
    return {key: value for key, value in flatten(config).items() if key not in ("seed", "recipe")}


def show(value: Any) -> str:
    """Format a value as on the command line."""
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
