"""What has changed since a run began: settings that may, settings that may not, and the code."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptloom.config.load import merge, parse, read_toml
from gptloom.config.run import RunConfig
from gptloom.devices import describe_machine
from gptloom.errors import ConfigError, GptloomError, GptloomWarning, InputError
from gptloom.files import read_json
from gptloom.training.run_dir import code_hash

_LENGTHS = ("steps", "minutes", "epochs")
_FIXED = ("model", "data", "seed", "recipe", "train.optimizer")


def read_settings(run: Path, kept: RunConfig | None) -> RunConfig:
    """The settings in a run's config.toml, which the user may have edited; where it is damaged, the checkpoint's own copy.

    Raises:
        GptloomError: it cannot be read, and there is no copy.

    Warns:
        GptloomWarning: the copy is used.
    """
    path = run / "config.toml"
    try:
        return parse(RunConfig, read_toml(path), where=str(path))
    except GptloomError as error:
        if kept is None:
            raise
        warnings.warn(
            f"{error.line()}; the settings that the checkpoint was written with are used instead",
            GptloomWarning,
            stacklevel=2,
        )
        return kept


def change(settings: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """Settings with changes (nested) laid over them; a new length for the run replaces the old."""
    values = settings.model_dump()
    if set(_LENGTHS) & set(changes.get("train", {})):
        values["train"] |= dict.fromkeys(_LENGTHS)
    return parse(RunConfig, merge(values, changes), where="resume")


def check_changes(before: RunConfig, after: RunConfig) -> list[str]:
    """A line for every setting that differs.

    Raises:
        ConfigError: what the weights, the data order or the optimizer's memory follow from differs.
    """
    lines = []
    for key, old, new in _differences(before.model_dump(), after.model_dump()):
        if {key, key.partition(".")[0]} & set(_FIXED) and key != "data.cache":
            raise ConfigError(
                f"{key} was {old} when the run began and cannot become {new}", where="resume", cure="start a new run"
            )
        lines.append(f"{key} was {old} and is now {new}")
    return lines


def same_length(before: RunConfig, after: RunConfig) -> bool:
    """Whether both say the same about how long the run is."""
    return all(getattr(before.train, name) == getattr(after.train, name) for name in _LENGTHS)


def code_notes(run: Path) -> list[str]:
    """Lines about gptloom's code and PyTorch, where they are not what the run began with: then the bits may differ."""
    try:
        about = read_json(run / "run.json")
        pairs = [
            ("gptloom's code", about["code_sha256"], code_hash()),
            ("PyTorch", about["versions"]["torch"], describe_machine()["versions"]["torch"]),
        ]
    except (InputError, KeyError, TypeError):
        return []  # whoever needs run.json says what is wrong with it
    return [
        f"{name} is not what the run began with, so its numbers may differ in the last digits"
        for name, old, new in pairs
        if old != new
    ]


def _differences(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted key, old, new) for every setting that differs."""
    found = []
    for key, old in before.items():
        new = after[key]
        if isinstance(old, Mapping):
            found += _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append((prefix + key, old, new))
    return found
