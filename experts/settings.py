"""What every table of a recipe has in common, whichever package its keys belong to."""

from typing import Annotated, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict

T = TypeVar("T")


class Settings(BaseModel):
    """A table of a recipe: frozen, and strict about its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _as_list(value: object) -> object:
    """A value that stands alone as a list of one."""
    return value if value is None or isinstance(value, list | tuple) else [value]


# A tuple whose only entry may be written without brackets.
OneOrMany = Annotated[tuple[T, ...], BeforeValidator(_as_list)]
