"""`memory` of a recipe: whether the weights stay in memory, and how much of it may be taken."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from experts.settings import Settings
from experts.units import parse_memory


class MemoryTable(Settings):
    """Whether the weights stay in memory, and how much of it may be taken."""

    model: Literal["auto", "resident", "streamed"] = Field(
        default="auto",
        description=(
            "resident: all weights stay in memory; streamed: decoder layers are read one by one; "
            "auto: resident where the weights fit"
        ),
    )
    limit: str | None = Field(
        default=None,
        description="most memory for weights and hidden states, for example 24GB; default: what is free",
    )
    spill: Path | None = Field(
        default=None, description="folder for hidden states that do not fit; default: in the run's own folder"
    )

    @field_validator("limit", mode="before")
    @classmethod
    def _is_size(cls, limit: Any) -> Any:
        if limit is not None:
            parse_memory(str(limit), "limit")
        return limit
