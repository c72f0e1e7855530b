"""`excise audit --positions FILE.csv`: measurements made elsewhere, through the same statistics."""

from pathlib import Path

from prune.audit.result import FileAudit
from validate.positions import document_note, read_positions
from validate.token_audit import audit_outcomes


def audit_of_positions(path: Path, ddof: int) -> FileAudit:
    """The audit of a CSV file of positions.

    Args:
        ddof: degrees of freedom taken off in the standard deviation of Cohen's d, 0 or 1.

    Raises:
        ExciseError: the file lacks a column, or has a value that is no measurement.
    """
    rows = read_positions(path)
    note = document_note(rows)
    return {"file": str(path), **audit_outcomes(rows, ddof), "notes": [note] if note else []}
