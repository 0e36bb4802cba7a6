"""Load settings from mappings, TOML files and recipes; merge, check and save them; describe their mistakes."""

import difflib
import reprlib
import tomllib
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import tomli_w
from pydantic import ValidationError

from gptloom.config.base import Config, ConflictError, field_names
from gptloom.config.run import RunConfig
from gptloom.errors import ConfigError, InputError, nearest, shortened
from gptloom.files import read_text

_LIMITS = {"ge": "at least {}", "gt": "above {}", "le": "at most {}", "lt": "below {}"}


def mistakes(cls: type[Config], values: Any, error: ValidationError) -> list[str]:
    """Describe every mistake in `values`: wrong keys, and conflicts among the valid ones.

    Args:
        cls: the group that the values are for.
        values: the values.
        error: pydantic's error.
    """
    wrong = [(tuple(map(str, one["loc"])), one["type"], one["input"]) for one in error.errors() if not _conflicts(one)]
    found = [_wrong_key(cls, *one) for one in wrong]
    # Pydantic does not check a group for conflicts if a field is wrong, so check again without the wrong fields.
    keys = [key for key, _, _ in wrong]
    if keys:
        try:
            cls.model_validate(_without(values, keys))
        except ValidationError as again:
            error = again
    for one in error.errors():
        group = tuple(map(str, one["loc"]))
        found += [why for fields, why in _conflicts(one) if not any((*group, name) in keys for name in fields)]
    return list(dict.fromkeys(found))


def expected(kind: Any, metadata: Sequence[Any] = ()) -> str:
    """Describe the values that a field accepts, from its annotation: type and range."""
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join([expected(part, metadata) for part in get_args(kind) if part is not type(None)])
    if hasattr(kind, "__metadata__"):
        inner = [limit for one in kind.__metadata__ for limit in getattr(one, "metadata", [])]
        return expected(get_args(kind)[0], [*metadata, *inner])
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    if isinstance(kind, type) and issubclass(kind, Config):
        return "a table of settings"
    if get_origin(kind) is tuple:
        return "a list of texts"
    name = {bool: "true or false", int: "a whole number", float: "a number"}.get(kind, "a text")
    return ", ".join(filter(None, [name, " and ".join(_limits(metadata))]))


def shown(value: Any) -> str:
    """Format a received value of any type, shortened."""
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, int) and value.bit_length() > 64:
        return f"a number of some {value.bit_length() * 30103 // 100000 + 1:,} digits"
    try:
        return shortened(reprlib.repr(value) if isinstance(value, list | tuple) else repr(value), 80)
    except (RecursionError, ValueError):  # nested too deeply, or it contains an int that is too long
        return f"a {type(value).__name__}"


def _limits(metadata: Sequence[Any]) -> Iterator[str]:
    for limit in metadata:
        for name, words in _LIMITS.items():
            if (bound := getattr(limit, name, None)) is not None:
                yield words.format(f"{bound:,}" if isinstance(bound, int) else f"{bound:g}")


def _conflicts(one: Any) -> list[Any]:
    reason = one.get("ctx", {}).get("error")
    return reason.found if isinstance(reason, ConflictError) else []


def _wrong_key(cls: type[Config], path: tuple[str, ...], kind: str, value: Any) -> str:
    """Describe one wrong key."""
    key = shortened(".".join(path), 80)
    if kind == "extra_forbidden":
        return f"{key}: unknown setting; {_nearest_key(cls, path[-1]) or 'see --help for the settings'}"
    field = _field(cls, path)
    what = expected(field.annotation, field.metadata) if field is not None else "a table of settings"
    if kind == "missing":
        return f"{key}: missing; expected {what}"
    return f"{key}: expected {what}, not {shown(value)}" if key else f"expected {what}, not {shown(value)}"


def _nearest_key(cls: type[Config], name: str) -> str:
    """Name the settings and groups whose last name is most similar, and the values that they accept."""
    known = field_names(cls)
    groups = {one: field for one, field in cls.model_fields.items() if one not in known}
    names = {key.rpartition(".")[2]: key for key in [*groups, *known]}
    close = difflib.get_close_matches(name[:100], names, n=2)
    fields = {names[one]: (known | groups)[names[one]] for one in close}
    hints = [f"{key} ({expected(field.annotation, field.metadata)})" for key, field in fields.items()]
    return f"did you mean {' or '.join(hints)}?" if hints else ""


def _field(cls: type[Config], path: Sequence[str]) -> Any:
    """Return the field at a path, or the last field on the way to it; None for the group itself."""
    field: Any = None
    for part in path:
        if part not in cls.model_fields:
            break
        field = cls.model_fields[part]
        if not (isinstance(field.annotation, type) and issubclass(field.annotation, Config)):
            break
        cls = field.annotation
    return field


def _without(values: Any, paths: Sequence[tuple[str, ...]]) -> Any:
    """Copy nested values without the entries at these paths."""
    if not isinstance(values, Mapping) or () in paths:
        return {}
    here = {path[0] for path in paths if len(path) == 1}
    return {
        key: _without(value, below) if (below := _below(key, paths)) else value
        for key, value in values.items()
        if str(key) not in here
    }


def _below(key: Any, paths: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    return [path[1:] for path in paths if len(path) > 1 and path[0] == str(key)]


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
        raise ConfigError(" | ".join(mistakes(cls, values, error)), where=where) from None


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
