"""`excise audit --positions FILE.csv`: measurements made elsewhere, through the same statistics."""

from pathlib import Path

import pandas as pd

from prune.audit.result import AuditJson, FileAudit
from validate.positions import read_positions, without_documents
from validate.token_audit import Outcome, audit, outcomes_of, passing
from validate.verdict import ALPHA, AUDIT_RULE


def of_file(path: Path, ddof: int) -> FileAudit:
    """The audit of a CSV file of positions.

    Args:
        ddof: degrees of freedom taken off in the standard deviation of Cohen's d, 0 or 1.

    Raises:
        ExciseError: the file lacks a column, or has a value that is no measurement.
    """
    rows = read_positions(path)
    note = without_documents(rows)
    return {"file": str(path), **judged_cells(rows, ddof), "notes": [note] if note else []}


def judged_cells(rows: pd.DataFrame, ddof: int) -> AuditJson:
    """Every (criterion, layer) with its verdict, by every outcome the rows have.

    Args:
        rows: a row per position and criterion (validate.positions).
        ddof: as in `of_file`.
    """
    by_outcome = {outcome: audit(rows, outcome, ddof) for outcome in outcomes_of(rows)}
    as_json = {outcome.value: [cell.to_json() for cell in cells] for outcome, cells in by_outcome.items()}
    return {
        "rule": AUDIT_RULE,
        "ddof": ddof,
        "alpha": ALPHA,
        "passing": {outcome.value: passing(cells) for outcome, cells in by_outcome.items()},
        "cells": as_json.pop(Outcome.DELTA.value),
        "outcomes": as_json,
    }
