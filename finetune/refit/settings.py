"""How a pruned model is refitted, as a recipe writes it.

Recipe schemas import this module at start-up, so it does not import torch.
"""

from typing import Any, Literal

from pydantic import Field, field_validator

from experts.settings import Settings


class RefitSettings(Settings):
    """Least squares in the kept experts' down projections: of every plan, random ones too."""

    ridge: Literal["auto"] | float = Field(
        default="auto",
        alias="lambda",
        description="ridge of the least squares, above 0; auto: chosen on two halves of the text",
    )
    fewest: int = Field(default=16, ge=0, description="an expert that fewer tokens go to stays as it is")
    batch: int = Field(default=8, gt=0, description="windows per forward")

    @field_validator("ridge")
    @classmethod
    def _above_zero(cls, ridge: Any) -> Any:
        if ridge != "auto" and not ridge > 0:
            raise ValueError(f"{ridge} is not above 0; take a number like 0.1, or auto")
        return ridge

    @property
    def chosen(self) -> float | None:
        """λ; None = it is chosen on the text."""
        return None if isinstance(self.ridge, str) else self.ridge
