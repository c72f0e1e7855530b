"""`validate` of a recipe: the test against random plans, the audit, the curves and the tasks."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from criteria.text.sources import Source, TemplateChoice
from experts.modes import Mode
from experts.settings import OneOrMany, Settings
from prune.recipe.text_settings import TextSettings
from validate.verdict import Null


class AuditSettings(Settings):
    """The token-level audit: does a criterion rank the active experts by what their removal costs?"""

    positions: Annotated[int, Field(gt=0)] | Literal["all"] = Field(
        default=200, description="positions per layer, or all"
    )
    scope: Literal["position", "sequence"] = Field(
        default="position", description="removed at the position alone, or in the window"
    )
    mode: Mode = Field(default=Mode.ZERO, description="what removal means: zero, renormalize, reroute, mean")
    layers: tuple[int, ...] = Field(default=(), description="decoder layers; none = all with experts")
    ddof: Literal[0, 1] = Field(
        default=1, description="degrees of freedom taken off in the standard deviation of Cohen's d"
    )
    seed: int = Field(default=0, ge=0, description="seed of the positions and of the ties")


class ProgressiveSettings(Settings):
    """Curves of removal per layer."""

    max_removed: int = Field(default=7, gt=0, description="experts removed at most")
    positions: int = Field(
        default=200, gt=0, description="positions per layer, for removal at each token by gate weight"
    )
    windows: int = Field(
        default=16, gt=0, description="validation windows, for removal from the layer; evenly spread"
    )
    draws: int = Field(
        default=20, ge=19, description="random orders; with fewer no point could differ at α = 0.05"
    )
    seed: int = Field(default=0, ge=0, description="seed of the positions and of the random orders")


class TaskSettings(Settings):
    """lm-eval tasks, run on the restricted model in this process."""

    names: OneOrMany[str] = Field(
        min_length=1, description="tasks, tags or groups that lm-eval knows, or that `include` defines"
    )
    include: Path | None = Field(default=None, description="folder of lm-eval task files")
    data: Path | None = Field(
        default=None, description="folder their relative data_files start from; none = that of the task files"
    )
    limit: int | None = Field(default=None, gt=0, description="items per task, the first ones; none = all")
    fewshot: int | None = Field(
        default=None, ge=0, description="examples before each item; none = what the task says"
    )
    batch: int = Field(default=16, gt=0, description="requests per forward")
    chat_template: TemplateChoice = Field(
        default=False,
        description="true, or the name of a template of the tokenizer: prompts are written as conversations",
    )
    confirm_unsafe_code: bool = Field(
        default=False,
        description=(
            "tasks may run code that the model writes (humaneval, mbpp): only where it can do no harm"
        ),
    )
    random_plans: int | None = Field(
        default=None, ge=5, description="random plans the tasks are run on; none = all"
    )


class ValidateSettings(TextSettings):
    """The test against chance, on text that calibration has not seen."""

    random_plans: int = Field(default=20, ge=20, description="random plans of the same size")
    random_seed: int = Field(default=0, ge=0, description="seed of the random plans and of the bootstrap")
    stop_on: Literal["worse than random", "not distinguishable"] | None = Field(
        default=None,
        description="exit 3 without a checkpoint when the first criterion's verdict is this or worse",
    )
    chance: Null = Field(
        default=Null.COUNTED,
        description="counted: p = share of random plans as good; normal: p from a t distribution",
    )
    audit: AuditSettings = Field(
        default=AuditSettings(), description="the token-level audit of `excise audit`"
    )
    progressive: ProgressiveSettings | None = Field(
        default=None, description="curves of removal per layer, with `excise audit`"
    )
    tasks: TaskSettings | None = Field(default=None, description="lm-eval tasks, besides the loss")

    @field_validator("data")
    @classmethod
    def _real_text(cls, sources: tuple[Source, ...]) -> tuple[Source, ...]:
        if any(source.sampled for source in sources):
            raise ValueError(
                "a model judged by its own samples says nothing of real text; "
                "give text, jsonl, dataset or stdlib"
            )
        return sources
