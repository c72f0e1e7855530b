"""`calibration` of a recipe: windows of text. `validate` and `finetune` begin with the same keys."""

from typing import Self

from pydantic import Field, model_validator

from criteria.text.bos import Bos
from criteria.text.sources import Source, TemplateChoice
from experts.settings import OneOrMany, Settings


class TextSettings(Settings):
    """Windows of text."""

    data: OneOrMany[Source] = Field(
        min_length=1, description="one source or a list, which share the windows by `weight`"
    )
    sequences: int = Field(default=128, gt=0, description="windows")
    length: int = Field(default=512, gt=16, description="tokens per window")
    seed: int = Field(default=0, ge=0, description="seed of the choice of windows")
    batch: int = Field(default=8, gt=0, description="windows per forward; changes memory and speed only")
    bos: Bos = Field(
        default=Bos.AUTO,
        description=(
            "auto, always, never: windows begin with the token for the beginning of a text; "
            "auto = if the tokenizer adds it"
        ),
    )
    chat_template: TemplateChoice | None = Field(
        default=None,
        description=(
            "of the sources that do not say: true, false or the name of a template; "
            "none = conversations by the tokenizer's own"
        ),
    )

    @model_validator(mode="after")
    def _as_many_as_are_named(self) -> Self:
        """Where every source names its windows, `sequences` need not repeat their sum."""
        named = [source.fixed_windows for source in self.data]
        if "sequences" in self.model_fields_set or None in named:
            return self
        return self.model_copy(update={"sequences": sum(number or 0 for number in named)})
