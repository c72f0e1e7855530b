"""Parts of a split, as `datasets` writes them: train, train[:200], train[10%:20%], train+test. No torch."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

PART = re.compile(r"(?P<name>[\w.\-]+)(?:\[(?P<begin>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")


@dataclass(frozen=True)
class Part:
    """Rows begin to stop of a split; stop None = to its end."""

    name: str
    begin: int = 0
    stop: int | None = None


def check(spec: str) -> None:
    """Raises ValueError for what is no part of a split."""
    for part in spec.split("+"):
        if not PART.fullmatch(part.strip()):
            known = "train, train[:200], train[10%:20%] or train+test"
            raise ValueError(f"split {spec!r} is not one; write {known}")


def parts(spec: str, sizes: Callable[[], Mapping[str, int]]) -> list[Part]:
    """The parts of a split.

    sizes: rows of every split, asked for only where shares or ends need them. Raises KeyError without them.
    """
    return [_part(PART.fullmatch(part.strip()), sizes) for part in spec.split("+")]


def _part(found: re.Match[str] | None, sizes: Callable[[], Mapping[str, int]]) -> Part:
    assert found is not None, "checked with the recipe"
    name, begin, stop = found["name"], found["begin"] or "0", found["stop"]
    if not any(end.startswith("-") or end.endswith("%") for end in (begin, stop or "")):
        return Part(name, int(begin), None if stop is None else int(stop))
    rows = sizes()[name]
    return Part(name, _row(begin, rows), rows if stop is None else _row(stop, rows))


def _row(end: str, rows: int) -> int:
    """The row an end means; a share is rounded as `datasets` does, an end before 0 counts from the back."""
    row = round(int(end[:-1]) * rows / 100) if end.endswith("%") else int(end)
    return min(rows, row + rows if row < 0 else row)
