"""`excise audit --positions FILE.csv`: measurements made elsewhere through the same statistics."""

from pathlib import Path
from typing import Any

from validate.positions import document_note, read_positions
from validate.token_audit import audit_outcomes


def of_file(path: Path, ddof: int) -> dict[str, Any]:
    """The audit of measurements made elsewhere: a CSV file of positions."""
    rows = read_positions(path)
    notes = list(filter(None, [document_note(rows)]))
    return {"file": str(path), **audit_outcomes(rows, ddof), "notes": notes}
