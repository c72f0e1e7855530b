"""How a pruned model is refitted, as a recipe writes it.

Recipe schemas import this module at start-up, so it does not import torch.
"""

from typing import Any, Literal

from pydantic import Field, field_validator

from experts.settings import Settings


class LocalSettings(Settings):
    """Training of every layer after its least squares (local distillation)."""

    steps: int = Field(default=60, gt=0, description="of every layer")
    tokens: int = Field(default=2048, gt=0, description="per step")
    lr: float = Field(
        default=1e-3,
        gt=0,
        description="learning rate of the experts' matrices at the first step; cosine to 0",
    )
    router_lr: float = Field(default=2e-3, gt=0, description="the same of the router's rows")
    seed: int = Field(default=0, ge=0, description="of the tokens that are drawn")


class RefitSettings(Settings):
    """Least squares in the kept experts' down projections: of every plan, random ones too."""

    ridge: Literal["auto"] | float = Field(
        default="auto",
        alias="lambda",
        description="ridge of the least squares, above 0; auto: chosen on two halves of the text",
    )
    fewest: int = Field(default=16, ge=0, description="an expert that fewer tokens go to stays as it is")
    batch: int = Field(default=8, gt=0, description="windows per forward")

    form: Literal["full", "scale"] = Field(
        default="full",
        description="full: every entry of the down projections; scale: one factor of all of a layer",
    )
    local: LocalSettings | None = Field(
        default=None,
        description="local distillation: every layer is trained after its least squares; none = nothing is",
    )

    @field_validator("ridge", mode="before")
    @classmethod
    def _above_zero(cls, ridge: Any) -> Any:
        number = isinstance(ridge, int | float) and not isinstance(ridge, bool)
        if ridge != "auto" and not (number and ridge > 0):
            raise ValueError(f"{ridge} is no number above 0; take one like 0.1, or auto")
        return ridge

    @property
    def chosen(self) -> float | None:
        """λ; None = it is chosen on the text."""
        return None if isinstance(self.ridge, str) else self.ridge
