"""`finetune` of a recipe: the text that recovery trains on, and how."""

from pydantic import Field, model_validator

from finetune.settings import Training
from prune.recipe.text_settings import TextSettings


class FinetuneSettings(TextSettings, Training):
    """Recovery of the pruned model, and of random plans of its size."""

    sequences: int = Field(default=1024, gt=0, description="training windows")
    seed: int = Field(
        default=0, ge=0, description="seed of the choice of windows, of the adapters and of the order"
    )
    batch: int = Field(default=8, gt=0, description="windows per forward")

    @model_validator(mode="after")
    def _a_step(self) -> "FinetuneSettings":
        step = self.batch * self.accumulate
        if step > self.sequences:
            raise ValueError(
                f"batch × accumulate = {step} windows make a step, but sequences is {self.sequences}"
            )
        return self
