"""Base class of all groups of settings: typed fields with ranges, and rules across fields."""

from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

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
