"""Base class of all groups of settings: typed fields with ranges, rules across fields, and their mistakes in words."""

import difflib
import reprlib
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, NoReturn, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from gptloom.errors import ConfigError, shortened

MOST = 2**31 - 1
"""The largest count: it fits in 32 bits, as libraries require."""

Probability = Annotated[float, Field(ge=0.0, lt=1.0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Weight = Annotated[float, Field(ge=0.0)]
Count = Annotated[int, Field(ge=1, le=MOST)]
Amount = Annotated[int, Field(ge=0, le=MOST)]
# Table sizes are bounded so that the product of any two does not overflow. `model.build.check_memory` checks whether
# they fit into memory.
Width = Annotated[int, Field(ge=1, le=2**20)]
Heads = Annotated[int, Field(ge=1, le=2**16)]
Length = Annotated[int, Field(ge=1, le=2**24)]


class Conflict(NamedTuple):
    """Fields of one group that are incompatible, and the reason."""

    fields: tuple[str, ...]
    why: str


class ConflictError(ValueError):
    """All conflicts of a group."""

    def __init__(self, found: list[Conflict]) -> None:
        """Keep the list, so that the caller can report each one together with other mistakes."""
        self.found = found
        super().__init__(" | ".join(one.why for one in found))


class Config(BaseModel):
    """A frozen group of settings. Unknown keys, infinities and NaN are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    def __init__(self, /, **values: Any) -> None:
        """Raise a ConfigError of one line for the mistakes of a call such as `SampleConfig(tokens=0)`."""
        try:
            super().__init__(**values)
        except ValidationError as error:
            refuse(type(self), values, error, type(self).__name__)

    # Validation then builds objects without this method, and can collect the mistakes of all groups.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    def conflicts(self) -> Iterator[Conflict]:
        """Yield the conflicts between fields that are each valid."""
        return iter(())

    @field_validator("*", mode="before")
    @classmethod
    def _a_truth_is_no_number(cls, value: Any, info: Any) -> Any:
        # Pydantic reads true as the number 1, but `n_layer = true` is a mistake.
        if isinstance(value, bool) and cls.model_fields[info.field_name].annotation is not bool:
            raise ValueError("true and false are not numbers")
        return value

    @model_validator(mode="after")
    def _check(self) -> "Config":
        if found := list(self.conflicts()):
            raise ConflictError(found)
        return self


def field_names(cls: type[Config], prefix: str = "") -> dict[str, Any]:
    """Return every setting of a group, nested groups included, as {dotted key: field}."""
    names: dict[str, Any] = {}
    for name, field in cls.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Config):
            names |= field_names(field.annotation, f"{prefix}{name}.")
        else:
            names[prefix + name] = field
    return names


def flatten(config: Config, prefix: str = "") -> dict[str, Any]:
    """Return the value of every setting, nested groups included, as {dotted key: value}."""
    found: dict[str, Any] = {}
    for name in type(config).model_fields:
        value = getattr(config, name)
        found |= flatten(value, f"{prefix}{name}.") if isinstance(value, Config) else {prefix + name: value}
    return found


def refuse(cls: type[Config], values: Mapping[str, Any], error: ValidationError, where: str) -> NoReturn:
    """Raise a `ConfigError` that names every mistake in the values."""
    raise ConfigError(" | ".join(mistakes(cls, values, error)), where=where) from None


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
        return f"{key}: unknown setting; {_nearest_key(cls, path[-1]) or '`gptloom train --help` lists the settings'}"
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
