"""`calibration` of a recipe: windows of text, and how its domains are mixed."""

from typing import Annotated

from pydantic import Field

from prune.recipe.text_settings import TextSettings

Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class CalibrationSettings(TextSettings):
    """Windows of text that criteria see."""

    mix: dict[str, Weight] | None = Field(
        default=None,
        min_length=1,
        description=(
            "domain: weight; observed criteria are of that mixture of the domains, without another pass; "
            "none = the text as it is"
        ),
    )
