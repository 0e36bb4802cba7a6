"""What every group of settings is made of: typed fields with a range, and rules for several fields at once."""

from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

MOST = 2**31 - 1
"""The largest count: what libraries hold in 32 bits."""

Probability = Annotated[float, Field(ge=0.0, lt=1.0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Weight = Annotated[float, Field(ge=0.0)]
Count = Annotated[int, Field(ge=1, le=MOST)]
Amount = Annotated[int, Field(ge=0, le=MOST)]
# Sizes of tables are bounded so that no product of two of them overflows, however absurd; `model.build.check_size` asks
# for the memory.
Width = Annotated[int, Field(ge=1, le=2**20)]
Heads = Annotated[int, Field(ge=1, le=2**16)]
Length = Annotated[int, Field(ge=1, le=2**24)]


class Conflict(NamedTuple):
    """Fields of one group that do not go together, and why."""

    fields: tuple[str, ...]
    why: str


class ConflictError(ValueError):
    """All the conflicts of a group."""

    def __init__(self, found: list[Conflict]) -> None:
        """Keep them apart, for who names them beside other mistakes."""
        self.found = found
        super().__init__(" | ".join(one.why for one in found))


class Config(BaseModel):
    """A frozen group of settings; unknown keys are errors, and so are infinities and NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    def conflicts(self) -> Iterator[Conflict]:
        """What does not go together, once each field is right for itself."""
        return iter(())

    @field_validator("*", mode="before")
    @classmethod
    def _a_truth_is_no_number(cls, value: Any, info: Any) -> Any:
        # Pydantic reads true as 1 where a number belongs; somebody who writes `n_layer = true` means something else.
        if isinstance(value, bool) and cls.model_fields[info.field_name].annotation is not bool:
            raise ValueError("a truth value is no number")
        return value

    @model_validator(mode="after")
    def _check(self) -> "Config":
        if found := list(self.conflicts()):
            raise ConflictError(found)
        return self


def field_names(cls: type[Config], prefix: str = "") -> dict[str, Any]:
    """Every setting below a group, as {dotted key: field}; groups inside it are walked, not listed."""
    names: dict[str, Any] = {}
    for name, field in cls.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Config):
            names |= field_names(field.annotation, f"{prefix}{name}.")
        else:
            names[prefix + name] = field
    return names
