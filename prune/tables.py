"""Numbers and tables as text: Markdown for reports, CSV for spreadsheets."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from validate.results import PlanCostJson

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
    """A number with its sign; what rounds to 0 is +0, never −0. A missing number is nan."""
    return "nan" if value is None else f"{value:+z.{digits}f}"


def plain(value: float | None, digits: int = 4) -> str:
    """A number without a plus sign; what rounds to 0 has no sign at all."""
    return "nan" if value is None else f"{value:z.{digits}f}"


def percent(value: float | None) -> str:
    """A share in whole percent; a missing one as what it is."""
    return "nan" if value is None else f"{value:z.0%}"


def removed(fraction: float) -> str:
    """A share of the experts, with as many digits as distinguish it from its neighbours: 50%, 12.5%."""
    return f"{100 * fraction:.4g}%"


def spread(mean: float | None, sd: float | None, digits: int = 4) -> str:
    """mean ± sd."""
    return f"{signed(mean, digits)} ± {plain(sd, digits)}"


def probability(value: float | None, digits: int = 3) -> str:
    """A p value; a small one is shown to the one digit that means something, a tiny one as a bound."""
    if value is None:
        return "nan"
    if value >= 10**-digits:
        return f"{value:.{digits}f}"
    if value >= SMALLEST_P:
        return f"{value:.0e}"
    return f"<{SMALLEST_P:.0e}"


def verdict(cost: PlanCostJson) -> str:
    """The verdict on a plan, with what limits it.

    That is why nothing can be claimed, or that criterion and reverse cost the same: no information.
    """
    notes = []
    if cost["interval_note"]:
        notes.append(cost["interval_note"])
    if cost["ends_alike"]:
        notes.append("two ends alike")
    return f"{cost['verdict']} ({'; '.join(notes)})" if notes else cost["verdict"]


def markdown_table(table: Table) -> str:
    """The table in Markdown, without its title; a bar inside a cell is escaped."""
    lines = [table.head, ["---"] * len(table.head), *table.rows]
    return "\n".join(_markdown_line(line) for line in lines)


def _markdown_line(cells: Sequence[str]) -> str:
    escaped = [cell.replace("|", "\\|") for cell in cells]
    return f"| {' | '.join(escaped)} |"


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> str:
    """Rows as CSV with a header line. A value that is None or missing is an empty field."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
