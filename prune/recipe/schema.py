"""Recipe: YAML -> frozen models, a unit under each field. An unknown key is an error that names the nearest known one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from criteria.text.bos import Bos
from criteria.text.sources import Source, Template
from experts.modes import Mode
from experts.units import parse_size
from finetune.settings import Training
from validate.verdict import Null

BUDGETS = ("fraction", "keep", "target_size")


class Settings(BaseModel):
    """A table of a recipe: frozen, and strict about its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TextSettings(Settings):
    """Windows of text."""

    data: tuple[Source, ...] = Field(
        min_length=1, description="one source or a list; each gives an equal share of the windows"
    )
    sequences: int = Field(default=128, gt=0, description="windows")
    length: int = Field(default=512, gt=16, description="tokens per window")
    seed: int = Field(default=0, ge=0, description="seed of the choice of windows")
    batch: int = Field(default=8, gt=0, description="windows per forward; changes memory and speed only")
    bos: Bos = Field(
        default=Bos.AUTO,
        description="auto, always, never: windows begin with the token for the beginning of a text; auto = if the tokenizer adds it",
    )
    chat_template: Template | None = Field(
        default=None,
        description="of the sources that do not say: true, false or the name of a template; none = conversations by the tokenizer's own",
    )

    @field_validator("data", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return [value] if isinstance(value, Mapping) else value


Count = Annotated[int, Field(gt=0)]


class PruneSettings(Settings):
    """How much goes, and where. Exactly one of fraction, keep, target_size."""

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
    multiple_of: int = Field(
        default=1,
        gt=0,
        description="counts per layer divide by this, as serving engines want (8, parallel size)",
    )
    protect_super_experts: Literal["auto", True, False] = Field(
        default="auto",
        description="never remove experts with outlier activations (arXiv 2507.23279); auto: in models of 200 experts and more",
    )

    @field_validator("keep", mode="before")
    @classmethod
    def _counts(cls, value: Any) -> Any:
        numbers: list[Any] = list(value.values()) if isinstance(value, dict) else [value]
        layers: list[Any] = list(value) if isinstance(value, dict) else []
        whole = all(
            isinstance(number, int) and not isinstance(number, bool) for number in (*numbers, *layers)
        )
        if value is not None and not (whole and numbers and min(numbers) > 0 and min(layers, default=0) >= 0):
            raise ValueError(
                f"expected experts per layer (keep: 32), or layer: count for some layers (keep: {{3: 16}}), got {value!r}"
            )
        return value

    @field_validator("target_size", mode="before")
    @classmethod
    def _as_text(cls, value: object) -> object:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @model_validator(mode="after")
    def _one_budget(self) -> "PruneSettings":
        if sum(getattr(self, key) is not None for key in BUDGETS) != 1:
            raise ValueError("give exactly one of fraction, keep, target_size")
        if self.floor is not None and self.scope == "layer":
            raise ValueError(
                "floor belongs to scope: global; with scope: layer every layer keeps the same number"
            )
        if isinstance(self.keep, dict) and self.scope == "global":
            raise ValueError(
                "keep with counts by hand leaves nothing for scope: global to decide; use scope: layer"
            )
        if self.target_size is not None:
            parse_size(self.target_size)
        return self


class AuditSettings(Settings):
    """The token-level audit: at one token, does the criterion rank the active experts by what their removal costs?"""

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
        default=20, ge=19, description="random orders; fewer could not tell anything at α = 0.05"
    )
    seed: int = Field(default=0, ge=0, description="seed of the positions and of the random orders")


class TaskSettings(Settings):
    """lm-eval tasks, run on the restricted model in this process."""

    names: tuple[str, ...] = Field(
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
    chat_template: Template = Field(
        default=False,
        description="true, or the name of a template of the tokenizer: prompts are written as conversations",
    )
    confirm_unsafe_code: bool = Field(
        default=False,
        description="tasks may run code that the model writes (humaneval, mbpp): only where it can do no harm",
    )
    random_plans: int | None = Field(
        default=None, ge=5, description="random plans the tasks are run on; none = all"
    )

    @field_validator("names", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value


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


class CompareSettings(Settings):
    """What `excise compare` puts side by side; every criterion of the recipe at each of these budgets."""

    fractions: tuple[float, ...] = Field(
        default=(), description="shares of experts to remove, in (0, 1); none = the budget of `prune`"
    )
    scopes: tuple[Literal["layer", "global"], ...] = Field(
        default=(), description="none = the scope of `prune`"
    )

    @field_validator("fractions", "scopes", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return [value] if isinstance(value, (int, float, str)) else value

    seeds: int = Field(
        default=3, gt=0, description="calibration seeds for the stability of plans; 1 = not measured"
    )
    stability_cost: float = Field(
        default=10.0, ge=0, description="criteria that cost more plain forwards are not calibrated again"
    )


class FinetuneSettings(TextSettings, Training):
    """Recovery of the pruned model, and of random plans of its size."""

    sequences: int = Field(default=1024, gt=0, description="training windows")
    seed: int = Field(
        default=0, ge=0, description="seed of the choice of windows, of the adapters and of the order"
    )
    batch: int = Field(default=8, gt=0, description="windows per forward")

    @model_validator(mode="after")
    def _a_step(self) -> "FinetuneSettings":
        if self.batch * self.accumulate > self.sequences:
            raise ValueError(
                f"batch × accumulate = {self.batch * self.accumulate} windows make a step, but sequences is {self.sequences}"
            )
        return self


class Recipe(Settings):
    """One run: calibrate, rank, test, prune, write."""

    model: str = Field(description="folder, `demo`, or organisation/name[@revision] on the hub")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="precision of the model in memory"
    )
    trust_remote_code: bool = Field(
        default=False, description="run model code that comes with the checkpoint"
    )
    calibration: TextSettings
    criteria: tuple[str, ...] = Field(
        default=("reap",), min_length=1, description="the first one prunes, the others are tested beside it"
    )
    prune: PruneSettings
    validation: ValidateSettings = Field(alias="validate", description="the test against random plans")
    compare: CompareSettings = Field(default=CompareSettings(), description="budgets of `excise compare`")
    finetune: FinetuneSettings | None = Field(default=None, description="recovery of the pruned model")

    @field_validator("criteria", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @field_validator("criteria")
    @classmethod
    def _once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if twice := next((name for name in value if value.count(name) > 1), ""):
            raise ValueError(
                f"{twice} is listed twice; every criterion is a test of its own, so it would be corrected for twice"
            )
        return value
