"""`refit` of a recipe: the text that down projections are refitted on, and how."""

from pydantic import Field

from finetune.refit.settings import RefitSettings
from prune.recipe.text_settings import TextSettings


class RefitTable(RefitSettings):
    """The refit of the pruned model, and of random plans of its size."""

    if_possible: bool = Field(
        default=False,
        description="where the model cannot be refitted it is pruned without, and a note says why",
    )
    dequantise: bool = Field(
        default=False,
        description="experts that are stored quantised (fp8, mxfp4) are written in bfloat16; otherwise they "
        "are refused",
    )
    text: TextSettings | None = Field(
        default=None, description="windows to refit on, with the keys of `calibration`; none = those of it"
    )
