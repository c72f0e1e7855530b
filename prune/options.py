"""Values that options of the command line choose from. No torch."""

from enum import StrEnum
from typing import Annotated

import typer

from criteria.beginning import Bos


class Dtype(StrEnum):
    """Precisions a model can be loaded in."""

    AUTO, FLOAT32, BFLOAT16, FLOAT16 = "auto", "float32", "bfloat16", "float16"


class Shown(StrEnum):
    """Outcomes of an audit."""

    DELTA, ABSOLUTE, KL = "delta", "absolute", "kl"


Begin = Annotated[
    Bos,
    typer.Option(
        "--bos",
        help="Begin every window with the token for the beginning of a text; auto = if the tokenizer does.",
    ),
]
