"""A recipe as frozen models, the unit of every key in its description. An unknown key is an error."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from experts.settings import OneOrMany, Settings
from prune.recipe.calibration_settings import CalibrationSettings
from prune.recipe.compare_settings import CompareSettings
from prune.recipe.finetune_settings import FinetuneSettings
from prune.recipe.memory_settings import MemoryTable
from prune.recipe.prune_settings import BUDGETS, PruneSettings
from prune.recipe.refit_settings import RefitTable
from prune.recipe.text_settings import TextSettings
from prune.recipe.validate_settings import (
    AuditSettings,
    ProgressiveSettings,
    TaskSettings,
    ValidateSettings,
)

__all__ = [
    "BUDGETS",
    "AuditSettings",
    "CalibrationSettings",
    "CompareSettings",
    "FinetuneSettings",
    "MemoryTable",
    "ProgressiveSettings",
    "PruneSettings",
    "Recipe",
    "RefitTable",
    "TaskSettings",
    "TextSettings",
    "ValidateSettings",
]


class Recipe(Settings):
    """One run: calibrate, rank, test, prune, write."""

    model: str = Field(description="folder, `demo`, or organisation/name[@revision] on the hub")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="precision of the model in memory"
    )
    trust_remote_code: bool = Field(
        default=False, description="run model code that comes with the checkpoint"
    )
    memory: MemoryTable = Field(default=MemoryTable(), description="whether the weights stay in memory")
    calibration: CalibrationSettings
    criteria: OneOrMany[str] = Field(
        default=("reap",), min_length=1, description="the first one prunes, the others are tested beside it"
    )
    prune: PruneSettings
    validation: ValidateSettings = Field(alias="validate", description="the test against random plans")
    compare: CompareSettings = Field(default=CompareSettings(), description="budgets of `excise compare`")
    refit: RefitTable | None = Field(
        default=None, description="least squares in the kept experts' down projections, without training"
    )
    finetune: FinetuneSettings | None = Field(default=None, description="recovery of the pruned model")

    @field_validator("criteria")
    @classmethod
    def _once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if names.count(name) > 1:
                raise ValueError(
                    f"{name} is listed twice; every criterion is a test of its own, "
                    "so it would be corrected for twice"
                )
        return names

    @model_validator(mode="after")
    def _refit_for_counts(self) -> "Recipe":
        if self.prune.counts == "refitted" and self.refit is None:
            raise ValueError(
                "prune.counts: refitted needs `refit`: counts are chosen by what it leaves; "
                "add `refit: {}`, or take counts: scores"
            )
        return self
