"""Counts per layer that were measured: a table and a sentence, for `excise prune` and `excise compare`."""

from collections.abc import Sequence

from prune.results import AllocationJson
from prune.tables import Table, plain

TITLE = "Kept per layer, chosen by what is left after each layer's refit"
HEAD = ("criterion", "fraction", "by raw scores", "chosen", "Σ KL by scores → chosen")
SENTENCE = (
    "Counts per layer: those with the lowest Σ KL(unpruned ‖ one layer cut and refitted), each layer "
    "refitted on one half of the refit's text and measured on the other."
)


def allocation_tables(rows: Sequence[AllocationJson]) -> list[Table]:
    """The chosen counts of every plan; no table where scores decided."""
    return [Table(TITLE, HEAD, [_row(row) for row in rows])] if rows else []


def _row(row: AllocationJson) -> tuple[str, ...]:
    return (
        row["criterion"],
        f"{row['fraction']:g}",
        _counts(row["by_scores"]),
        _counts(row["chosen"]),
        f"{plain(row['expected_by_scores'])} → {plain(row['expected'])}",
    )


def _counts(counts: Sequence[int]) -> str:
    return " ".join(map(str, counts))
