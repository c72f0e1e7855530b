"""`prune` of a recipe: how many experts are removed, and where."""

from typing import Annotated, Any, Literal, TypeGuard

from pydantic import Field, field_validator, model_validator

from experts.settings import Settings
from experts.units import parse_size

BUDGETS = ("fraction", "keep", "target_size")  # of which a recipe has exactly one
Count = Annotated[int, Field(gt=0)]


class PruneSettings(Settings):
    """How many experts are removed, and where. Exactly one of fraction, keep, target_size."""

    fraction: float | None = Field(default=None, description="share of experts to remove, in (0, 1)")
    keep: Count | dict[int, Count] | None = Field(
        default=None,
        description="experts kept per layer (on average, in scope global), or layer: count for some layers",
    )
    target_size: str | None = Field(
        default=None, description="largest size of all weights together, for example 8GB"
    )
    scope: Literal["layer", "global"] = Field(
        default="layer", description="same count in every layer, or lowest scores of the whole model"
    )
    floor: int | None = Field(
        default=None,
        gt=0,
        description="scope global: fewest experts a layer keeps; default: what routing needs",
    )
    counts: Literal["scores", "refitted"] = Field(
        default="scores",
        description=(
            "scope global: how many experts each layer keeps: by the raw scores, or by what is left after "
            "the refit of each layer, measured on its text"
        ),
    )
    multiple_of: int = Field(
        default=1,
        gt=0,
        description="every layer's count is a multiple of it, as serving engines want (8, parallel size)",
    )
    protect_super_experts: Literal["auto", True, False] = Field(
        default="auto",
        description=(
            "never remove experts with outlier activations (arXiv 2507.23279); "
            "auto: in models of 200 experts and more"
        ),
    )

    @field_validator("keep", mode="before")
    @classmethod
    def _counts(cls, value: Any) -> Any:
        """One message for whatever is no count, instead of pydantic's about every type it tried."""
        if value is not None and not _is_keep(value):
            raise ValueError(
                "expected experts per layer (keep: 32), or layer: count for some layers (keep: {3: 16}), "
                f"got {value!r}"
            )
        return value

    @field_validator("target_size", mode="before")
    @classmethod
    def _as_text(cls, value: object) -> object:
        """YAML reads a size in bytes as a number."""
        return str(value) if _is_whole(value) else value

    @model_validator(mode="after")
    def _one_budget(self) -> "PruneSettings":
        if sum(getattr(self, key) is not None for key in BUDGETS) != 1:
            raise ValueError("give exactly one of fraction, keep, target_size")
        if self.floor is not None and self.scope == "layer":
            raise ValueError(
                "floor belongs to scope: global; with scope: layer every layer keeps the same number"
            )
        if self.counts == "refitted" and self.scope == "layer":
            raise ValueError(
                "counts: refitted belongs to scope: global; "
                "with scope: layer every layer keeps the same number"
            )
        if isinstance(self.keep, dict) and self.scope == "global":
            raise ValueError(
                "keep with counts by hand leaves nothing for scope: global to decide; use scope: layer"
            )
        if self.target_size is not None:
            parse_size(self.target_size)
        return self


def _is_keep(value: Any) -> bool:
    """Whether it is a count, or layer: count for some layers."""
    if not isinstance(value, dict):
        return _is_whole(value) and value > 0
    layers, counts = list(value), list(value.values())
    if not counts or not all(map(_is_whole, [*layers, *counts])):
        return False
    return bool(min(layers) >= 0 and min(counts) > 0)


def _is_whole(value: object) -> TypeGuard[int]:
    """YAML's true and false are ints too."""
    return isinstance(value, int) and not isinstance(value, bool)
