"""`excise audit --positions FILE.csv`: measurements made elsewhere through the same statistics."""

from pathlib import Path
from typing import Any

import pandas as pd

from validate.positions import read_positions, without_documents
from validate.token_audit import Outcome, audit, outcomes_of, passing
from validate.verdict import ALPHA, AUDIT_RULE


def of_file(path: Path, ddof: int) -> dict[str, Any]:
    """The audit of measurements made elsewhere: a CSV file of positions."""
    rows = read_positions(path)
    notes = list(filter(None, [without_documents(rows)]))
    return {"file": str(path), **judged_cells(rows, ddof), "notes": notes}


def judged_cells(rows: pd.DataFrame, ddof: int) -> dict[str, Any]:
    """Cells by every outcome the rows have; `cells` are those of the signed ΔCE."""
    found = {outcome: audit(rows, outcome, ddof) for outcome in outcomes_of(rows)}
    signed = found.pop(Outcome.DELTA)
    return {
        "rule": AUDIT_RULE,
        "ddof": ddof,
        "alpha": ALPHA,
        "passing": {
            outcome.value: passing(cells) for outcome, cells in {Outcome.DELTA: signed, **found}.items()
        },
        "cells": [cell.to_json() for cell in signed],
        "outcomes": {outcome.value: [cell.to_json() for cell in cells] for outcome, cells in found.items()},
    }
