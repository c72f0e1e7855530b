"""Parts of a split, as `datasets` writes them: train, train[:200], train[10%:20%], train+test."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

PART = re.compile(r"(?P<name>[\w.\-]+)(?:\[(?P<begin>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")


@dataclass(frozen=True)
class SplitPart:
    """Consecutive rows of a split.

    Attributes:
        name: of the split
        begin: its first row
        stop: the row after its last; None = to the end of the split
    """

    name: str
    begin: int = 0
    stop: int | None = None


def check_split(spec: str) -> None:
    """Refuse what is no split and no part of one.

    Raises:
        ValueError: it cannot be parsed.
    """
    for part in spec.split("+"):
        if not PART.fullmatch(part.strip()):
            known = "train, train[:200], train[10%:20%] or train+test"
            raise ValueError(f"split {spec!r} is not one; write {known}")


def split_parts(spec: str, sizes: Callable[[], Mapping[str, int]]) -> list[SplitPart]:
    """Return the parts of a split.

    Args:
        spec: the split as a recipe writes it
        sizes: returns the number of rows of every split; called only for percentages and counts from the end

    Raises:
        KeyError: the number of rows of a split is needed and not known.
    """
    return [_part(PART.fullmatch(part.strip()), sizes) for part in spec.split("+")]


def _part(match: re.Match[str] | None, sizes: Callable[[], Mapping[str, int]]) -> SplitPart:
    assert match is not None, "checked with the recipe"
    name = match["name"]
    begin = match["begin"] or "0"
    stop = match["stop"]
    if not (_needs_size(begin) or _needs_size(stop or "")):
        return SplitPart(name, int(begin), None if stop is None else int(stop))
    rows = sizes()[name]
    return SplitPart(name, _row(begin, rows), rows if stop is None else _row(stop, rows))


def _needs_size(bound: str) -> bool:
    """Whether a bound depends on the number of rows of the split."""
    return bound.startswith("-") or bound.endswith("%")


def _row(bound: str, rows: int) -> int:
    """The row of a bound. `datasets` rounds percentages like this; what is below 0 counts from the end."""
    row = round(int(bound[:-1]) * rows / 100) if bound.endswith("%") else int(bound)
    if row < 0:
        row += rows
    return min(rows, row)
