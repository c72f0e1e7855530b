"""`excise init`."""

from pathlib import Path
from typing import Annotated

import typer

from prune.console.exits import guarded
from prune.console.options import Debug, Force, Model


def init(
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="The recipe's file, NAME.yaml.")] = Path(
        "recipe.yaml"
    ),
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Write a recipe for a model, with a comment per key: what it means and what this model allows."""

    def work() -> int:
        from prune.starter.write import write_starter

        write_starter(model, output, force)
        print(f"{output}: written; read it, then: excise prune {output} --dry-run")
        return 0

    guarded(work, True, debug)
