"""What `excise effects --json` prints."""

from typing import NotRequired, TypedDict


class EffectsResult(TypedDict):
    """A table of effects that was written.

    Attributes:
        table: its path.
        commit: of a model on the hub, the one that was read.
        rows: one per intervention.
        windows: of the text.
        windows_now: those that this run measured, wholly or in part.
        rows_now: rows that this run measured.
        seconds: that took.
        mean_delta: mean ΔCE of all rows, nats; None without rows.
        mean_kl: mean KL of all rows, nats; None without rows.
        notes: what a reader has to know of the numbers.
    """

    table: str
    commit: NotRequired[str]
    rows: int
    windows: int
    windows_now: int
    rows_now: int
    seconds: float
    mean_delta: float | None
    mean_kl: float | None
    notes: list[str]
