"""What callers pass to the public functions: a wrong argument is refused in one line that names it."""

from collections.abc import Iterable
from enum import StrEnum
from numbers import Integral, Real
from typing import Any, TypeVar

from experts.errors import SettingError

Choice = TypeVar("Choice", bound=StrEnum)


def check_kind(name: str, value: object, kind: type | tuple[type, ...], expected: str) -> None:
    """Refuse a value of another kind.

    Args:
        name: of the argument
        value: what was passed
        kind: what it has to be
        expected: the same in words, and where it comes from

    Raises:
        ExciseError: it is of another kind.
    """
    if not isinstance(value, kind):
        raise SettingError(f"{name}: expected {expected}, got {shown(value)}")


def check_count(name: str, value: object, least: int = 1) -> None:
    """Refuse what is no whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise SettingError(f"{name} is {shown(value)}; it is a whole number of at least {least}")


def check_choice(name: str, value: object, choices: Iterable[object]) -> None:
    """Refuse what is none of the choices."""
    known = list(choices)
    if value not in known:
        raise SettingError(f"{name} {value!r}: expected one of {', '.join(map(str, known))}")


def choice_of(name: str, value: Choice | str, kind: type[Choice]) -> Choice:
    """Return the member of that name. Raises ExciseError with the names there are."""
    check_choice(name, value, [member.value for member in kind])
    return kind(value)


def shown(value: Any) -> str:
    """A short form of a value for an error message."""
    return repr(value) if isinstance(value, str | Real) else f"a {type(value).__name__}"
