"""What `excise effects --json` prints."""

from typing import NotRequired, TypedDict


class EffectsResult(TypedDict):
    """A table of effects that was written."""

    table: str  # its path
    commit: NotRequired[str]  # of a model on the hub, the one that was read
    rows: int  # one per intervention
    windows: int  # of the text
    windows_now: int  # those that this run measured, wholly or in part
    rows_now: int  # rows that this run measured
    seconds: float  # that this took
    mean_delta: float | None  # mean ΔCE of all rows, nats; None without rows
    mean_kl: float | None  # mean KL of all rows, nats; None without rows
    notes: list[str]  # what a reader has to know of the numbers
