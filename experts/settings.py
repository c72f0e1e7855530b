"""What every table of a recipe has in common, whichever package its keys belong to."""

import difflib
from collections.abc import Iterable
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, ValidationInfo, field_validator

T = TypeVar("T")
NUMBERS = (int, float, int | None, float | None)  # types of keys that hold one


class Settings(BaseModel):
    """A table of a recipe: frozen, and strict about its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _a_number(cls, value: Any, field: ValidationInfo) -> Any:
        """True and False are no numbers, though Python counts with them."""
        expected = cls.model_fields[field.field_name or ""].annotation
        if isinstance(value, bool) and expected in NUMBERS:
            raise ValueError(f"expected a number, got {str(value).lower()}")
        return value


def _as_list(value: object) -> object:
    """A value that stands alone as a list of one."""
    return value if value is None or isinstance(value, list | tuple) else [value]


# A tuple whose only entry may be written without brackets.
OneOrMany = Annotated[tuple[T, ...], BeforeValidator(_as_list)]


def first_problem(error: ValidationError, table: type[BaseModel]) -> str:
    """What is wrong with values that are no such table, in one line: the first problem and its key."""
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        return f"unknown key {key!r}; {nearest(key, known_keys(table))}"
    message = first["msg"].removeprefix("Value error, ")
    return f"{key}: {message}" if key else message


def known_keys(table: type[BaseModel]) -> list[str]:
    """The keys of a table, as a recipe writes them."""
    return [field.alias or name for name, field in table.model_fields.items()]


def nearest(key: str, known: Iterable[str]) -> str:
    """What an unknown key may have meant."""
    names = list(known)
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(names)}"
