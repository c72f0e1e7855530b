"""What a user says about memory."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from experts.errors import ExciseError

Mode = Literal["auto", "resident", "streamed"]


@dataclass(frozen=True)
class MemorySettings:
    """What a user says about memory.

    Attributes:
        model: resident = all weights stay in memory; streamed = decoder layers are read one by one, whenever
            they are needed; auto = resident where the weights fit
        limit: bytes that the weights may take on their device, and weights and hidden states together in
            main memory; of all processes on a machine together; None = what is free
        spill: folder for hidden states that do not fit, and for the record of an unfinished sweep; None =
            they stay in memory, and nothing is resumed; a recipe's run then takes a folder of its own
    """

    model: Mode = "auto"
    limit: int | None = None
    spill: Path | None = None


def mode_of(name: str) -> Mode:
    """The mode of that name. Raises ExciseError with the names there are."""
    for mode in get_args(Mode):
        if mode == name:
            found: Mode = mode
            return found
    raise ExciseError(f"memory {name!r}: expected one of {', '.join(get_args(Mode))}")
