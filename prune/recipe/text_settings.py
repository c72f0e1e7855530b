"""`calibration` of a recipe: windows of text. `validate` and `finetune` begin with the same keys."""

from pydantic import Field

from criteria.text.bos import Bos
from criteria.text.sources import Source, TemplateChoice
from experts.settings import OneOrMany, Settings


class TextSettings(Settings):
    """Windows of text."""

    data: OneOrMany[Source] = Field(
        min_length=1, description="one source or a list; each gives an equal share of the windows"
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
