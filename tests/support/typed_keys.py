"""The keys that a TypedDict promises, at every depth."""

from collections.abc import Iterator
from typing import Any, get_args, get_type_hints, is_typeddict


def typed_keys(kind: Any) -> Iterator[str]:
    """Keys of a TypedDict and of all that it holds; keys of a plain dict are named by the data."""
    if is_typeddict(kind):
        for key, value in get_type_hints(kind).items():
            yield key
            yield from typed_keys(value)
    else:
        for part in get_args(kind):
            yield from typed_keys(part)
