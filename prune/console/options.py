"""Arguments and options that commands share, and the values they choose from."""

from enum import StrEnum
from typing import Annotated

import typer

from criteria.text.bos import Bos
from prune.console import completion


class Dtype(StrEnum):
    """Precisions a model can be loaded in."""

    AUTO, FLOAT32, BFLOAT16, FLOAT16 = "auto", "float32", "bfloat16", "float16"


class Weights(StrEnum):
    """Where weights are while a model works."""

    AUTO, RESIDENT, STREAMED = "auto", "resident", "streamed"


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
Json = Annotated[bool, typer.Option("--json", help="Machine-readable result on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars, no notes.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an output that exists.")]
Set = Annotated[
    list[str],
    typer.Option(
        "--set", metavar="KEY.PATH=VALUE", help="Change a recipe value, for example prune.fraction=0.25."
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Say what would be read, computed and written, and what it takes; do nothing."
    ),
]
Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="Folder, `demo`, or organisation/name on the hub; @revision may follow.",
        autocompletion=completion.models,
    ),
]
Recipe = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="A YAML file, or the name of a recipe that comes with Excise (demo).",
        autocompletion=completion.recipes,
    ),
]
