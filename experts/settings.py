"""What every table of a recipe has in common, whichever package its keys belong to."""

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationInfo, field_validator

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
