"""`compare` of a recipe: the budgets that are put side by side, and what stability may cost."""

from collections.abc import Iterable
from typing import Literal

from pydantic import Field

from criteria.criterion import Criterion
from experts.settings import OneOrMany, Settings


class CompareSettings(Settings):
    """What `excise compare` puts side by side: every criterion of the recipe at each of these budgets."""

    fractions: OneOrMany[float] = Field(
        default=(), description="shares of experts to remove, in (0, 1); none = the budget of `prune`"
    )
    scopes: OneOrMany[Literal["layer", "global"]] = Field(
        default=(), description="none = the scope of `prune`"
    )
    seeds: int = Field(
        default=3, gt=0, description="calibration seeds for the stability of plans; 1 = not measured"
    )
    stability_cost: float = Field(
        default=10.0, ge=0, description="criteria that cost more plain forwards are not calibrated again"
    )

    def repeated(self, criteria: Iterable[Criterion]) -> tuple[Criterion, ...]:
        """Those that are cheap enough to be calibrated again."""
        return tuple(criterion for criterion in criteria if criterion.cost <= self.stability_cost)
