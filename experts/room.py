"""What a sweep may take while states wait: memory, a folder for what does not fit, and a key to resume by."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Room:
    """Where the states of a sweep wait. Where all weights are in memory nothing waits, and this is not used.

    Attributes:
        memory: bytes that waiting states may take; None = no bound
        spill: folder for what does not fit and for the record of an unfinished sweep; None = nothing is
            written, and clean states stay in memory whatever they take
        key: identity of model and weights; under another one a record is of no use. Empty = none is written
    """

    memory: int | None = None
    spill: Path | None = None
    key: str = ""


UNBOUNDED = Room()
