"""Whether JSON that was read back is what its type promises: every key, every kind of value."""

from collections.abc import Iterator
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

NUMBERS = {int: (int,), float: (int, float)}  # True and False are none of them


def problems(value: Any, expected: Any, name: str = "") -> Iterator[str]:
    """Yield what is wrong with a value, key by key; keys that the type does not know are no problem.

    Args:
        value: as `json.loads` returns it
        expected: a TypedDict, or what may be in one: list, dict, union, Literal, enum, str, int, float, bool
        name: of the value, as in plans[0].delta
    """
    if is_typeddict(expected):
        yield from _of_object(value, expected, name)
    elif get_origin(expected) in (Union, UnionType):
        tried = [list(problems(value, choice, name)) for choice in get_args(expected)]
        yield from min(tried, key=len)
    elif get_origin(expected) is list:
        yield from _of_list(value, get_args(expected)[0], name)
    elif get_origin(expected) is dict:
        yield from _of_table(value, get_args(expected)[1], name)
    elif not _is_of(value, expected):
        yield f"{name} is {_shown(value)}"


def _of_object(value: Any, expected: Any, name: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{name or 'its content'} is {_shown(value)}"
        return
    for key, kind in _hints(expected).items():
        inside = f"{name}.{key}" if name else key
        if key in value:
            yield from problems(value[key], kind, inside)
        elif key in expected.__required_keys__:
            yield f"{inside} is missing"


def _of_list(value: Any, kind: Any, name: str) -> Iterator[str]:
    if not isinstance(value, list):
        yield f"{name} is {_shown(value)}"
        return
    for number, entry in enumerate(value):
        yield from problems(entry, kind, f"{name}[{number}]")


def _of_table(value: Any, kind: Any, name: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{name} is {_shown(value)}"
        return
    for key, entry in value.items():
        yield from problems(entry, kind, f"{name}.{key}")


def _is_of(value: Any, expected: Any) -> bool:
    if get_origin(expected) is Literal:
        return value in get_args(expected)
    if issubclass(expected, Enum):
        return value in [member.value for member in expected]
    if expected in NUMBERS:
        return isinstance(value, NUMBERS[expected]) and not isinstance(value, bool)
    return isinstance(value, NoneType if expected is None else expected)


@cache
def _hints(expected: Any) -> dict[str, Any]:
    return get_type_hints(expected)


def _shown(value: Any) -> str:
    """A value as it is in the file, shortened."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "a table"
    return "null" if value is None else repr(value)[:40]
