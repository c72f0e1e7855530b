"""An undo log: values that stand in for others in tables of attributes for a while."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any


class Undo:
    """Replaces values in tables of attributes and puts the old ones back, the latest replacement first.

    As a context manager it undoes everything when its block ends, also after an exception.
    A table is a dictionary of attributes: `vars(module)`, `module._parameters` or `module._buffers`.
    """

    def __init__(self) -> None:
        self._before: list[tuple[dict[str, Any], str, Any]] = []

    def __enter__(self) -> "Undo":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.undo()

    def replace(self, table: dict[str, Any], key: str, value: Any) -> None:
        """Put `value` into a table and record the one that it replaces."""
        self._before.append((table, key, table[key]))
        table[key] = value

    def undo(self) -> None:
        """Put all old values back. The record stays, so that undoing again changes nothing."""
        _put_back(self._before)

    @contextmanager
    def undone(self) -> Iterator[None]:
        """Inside the block the old values are in place, after it those that replaced them."""
        replacements = [(table, key, table[key]) for table, key, _ in self._before]
        try:
            self.undo()
            yield
        finally:
            _put_back(replacements)


def _put_back(values: list[tuple[dict[str, Any], str, Any]]) -> None:
    # In reverse: what was replaced twice ends with its first value.
    for table, key, value in reversed(values):
        table[key] = value
