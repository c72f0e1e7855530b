"""Numbers and tables as text."""

from collections.abc import Sequence
from typing import Any

LEAST = 1e-4  # a smaller p is an extrapolation, from some dozens of plans or some thousands of resamples


def signed(value: float | None, digits: int = 4) -> str:
    """A number with its sign, which what rounds to 0 has not: never −0.000; a missing one as what it is."""
    return "nan" if value is None else f"{value:+z.{digits}f}"


def plain(value: float | None, digits: int = 4) -> str:
    """A number without a plus sign."""
    return "nan" if value is None else f"{value:z.{digits}f}"


def percent(value: float) -> str:
    """A share in whole percent."""
    return f"{value:z.0%}"


def removed(fraction: float) -> str:
    """A share of the experts, with as many digits as it takes to tell it from its neighbours: 50%, 12.5%."""
    return f"{100 * fraction:.4g}%"


def spread(mean: float | None, sd: float | None, digits: int = 4) -> str:
    """mean ± sd."""
    return f"{signed(mean, digits)} ± {plain(sd, digits)}"


def probability(value: float | None, digits: int = 3) -> str:
    """A p value; small ones are not shown to more digits than they can have."""
    if value is None:
        return "nan"
    return (
        f"{value:.{digits}f}"
        if value >= 10**-digits
        else f"{value:.0e}"
        if value >= LEAST
        else f"<{LEAST:.0e}"
    )


def verdict(cost: dict[str, Any]) -> str:
    """With what a reader has to know beside it: why nothing can be claimed, or that the ranking carries no information."""
    notes = [cost["interval_note"]] * bool(cost["interval_note"]) + ["two ends alike"] * cost["ends_alike"]
    return f"{cost['verdict']} ({'; '.join(notes)})" if notes else str(cost["verdict"])


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The table in Markdown; a bar inside a cell is escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
