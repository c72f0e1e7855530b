"""How many windows each of several sources gives."""

import math
from collections.abc import Sequence

from criteria.text.sources import Source
from experts.errors import ExciseError


def shares(sources: Sequence[Source], sequences: int) -> list[int]:
    """Divide windows among sources.

    A sampled source that names its `windows` gives so many. The others share the rest by `weight`: each gets
    the whole part of its share, and those with the largest fractions one more, the first ones among equals.

    Args:
        sources: of one text
        sequences: N, number of windows

    Returns:
        Windows of every source; together N.

    Raises:
        ExciseError: a source would give no window, or the fixed numbers do not fit.
    """
    fixed = [source.fixed_windows for source in sources]
    rest = sequences - sum(number or 0 for number in fixed)
    open_ones = [number for number, count in enumerate(fixed) if count is None]
    _check_rest(rest, len(open_ones), sequences, len(sources))
    counts = [count or 0 for count in fixed]
    for number, count in zip(open_ones, _divided([sources[i].weight for i in open_ones], rest), strict=True):
        counts[number] = count
    if 0 in counts:
        label = sources[counts.index(0)].label
        raise ExciseError(
            f"data ({label}): {sequences} windows leave none for its weight; raise sequences or the weight"
        )
    return counts


def _check_rest(rest: int, open_ones: int, sequences: int, sources: int) -> None:
    if sources == open_ones and rest < sources:
        few = f"data: {sequences} windows for {sources} sources, which give one each at least"
        raise ExciseError(f"{few}; raise sequences")
    if rest < open_ones or (not open_ones and rest):
        raise ExciseError(
            f"data: sampled.windows asks for {sequences - rest} windows and sequences for {sequences}; "
            "make them fit, or leave sampled.windows out"
        )


def _divided(weights: Sequence[float], rest: int) -> list[int]:
    """Whole numbers in proportion to weights, by the largest remainders."""
    total = sum(weights)
    exact = [rest * weight / total for weight in weights]
    counts = [math.floor(share + 1e-9) for share in exact]
    order = sorted(range(len(weights)), key=lambda number: counts[number] - exact[number])
    for number in order[: rest - sum(counts)]:
        counts[number] += 1
    return counts
