"""Numbers and tables as text."""

from collections.abc import Sequence


def human(size: int) -> str:
    """Bytes with a decimal unit."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= scale:
            return f"{size / scale:.2f} {unit}"
    return f"{size} B"


def signed(value: float | None, digits: int = 4) -> str:
    """A number with its sign; a missing one as what it is."""
    return "nan" if value is None else f"{value:+.{digits}f}"


def probability(value: float | None, digits: int = 3) -> str:
    """A p value: small ones as a power of ten."""
    return "nan" if value is None else f"{value:.{digits}f}" if value >= 10**-digits else f"{value:.0e}"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The table in Markdown; a bar inside a cell is escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
