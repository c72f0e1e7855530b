"""Numbers and tables as text: Markdown for reports, CSV for spreadsheets."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from validate.results import CostJson, PlanCostJson

# A smaller p is an extrapolation, from some dozens of plans or some thousands of resamples.
SMALLEST_P = 1e-4


@dataclass(frozen=True)
class Table:
    """A table of a report, for the terminal and for Markdown alike.

    Attributes:
        title: what it shows; empty where the text around it says so.
        head: names of the columns.
        rows: cells as text, as many in a row as there are columns.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def signed(value: float | None, digits: int = 4) -> str:
    """Format a number with its sign; one that rounds to 0 is +0, a missing one nan."""
    return "nan" if value is None else f"{value:+z.{digits}f}"


def plain(value: float | None, digits: int = 4) -> str:
    """Format a number without a plus sign; one that rounds to 0 has no minus sign either."""
    return "nan" if value is None else f"{value:z.{digits}f}"


def percent(value: float | None) -> str:
    """Format a share in whole percent; a missing one is nan."""
    return "nan" if value is None else f"{value:z.0%}"


def removed(fraction: float) -> str:
    """Format a share of the experts with up to four digits, enough to tell counts apart: 50%, 12.5%."""
    return f"{100 * fraction:.4g}%"


def spread(mean: float | None, sd: float | None, digits: int = 4) -> str:
    """Format mean ± sd."""
    return f"{signed(mean, digits)} ± {plain(sd, digits)}"


def probability(value: float | None, digits: int = 3) -> str:
    """Format a p value: a small one with the one digit that means something, a tiny one as a bound."""
    if value is None:
        return "nan"
    if value >= 10**-digits:
        return f"{value:.{digits}f}"
    if value >= SMALLEST_P:
        return f"{value:.0e}"
    return f"<{SMALLEST_P:.0e}"


def verdict(cost: PlanCostJson, domains: Sequence[CostJson] = ()) -> str:
    """Return the verdict on a plan with its caveats.

    These are the domains in which it does not hold, the reason why there is no interval, and "two ends
    alike": plan and reverse cost the same.

    Args:
        cost: over all rows of a measure
        domains: the same in each domain of the text; empty where there is one, and for tasks
    """
    notes = domain_notes(cost, domains)
    if cost["interval_note"]:
        notes.append(cost["interval_note"])
    if cost["ends_alike"]:
        notes.append("two ends alike")
    return f"{cost['verdict']} ({'; '.join(notes)})" if notes else cost["verdict"]


def domain_notes(cost: PlanCostJson, domains: Sequence[CostJson]) -> list[str]:
    """Return in which domains a verdict does not hold, in one note or none."""
    if not domains:
        return []
    from validate.conclusion import caveat  # here, because `excise inspect` prints tables without scipy

    return list(filter(None, [caveat(cost["verdict"], domains)]))


def markdown_table(table: Table) -> str:
    """Return a table in Markdown without its title; bars inside cells are escaped."""
    lines = [table.head, ["---"] * len(table.head), *table.rows]
    return "\n".join(_markdown_line(line) for line in lines)


def _markdown_line(cells: Sequence[str]) -> str:
    escaped = [cell.replace("|", "\\|") for cell in cells]
    return f"| {' | '.join(escaped)} |"


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> str:
    """Return rows as CSV with a header line; None and missing values are empty fields."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
