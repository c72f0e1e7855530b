"""`excise compare`."""

from pathlib import Path
from typing import Annotated

import typer

from prune.console import show
from prune.console.call import Call
from prune.console.exits import guarded, waiting
from prune.console.forecast import show_forecast
from prune.console.options import Debug, DryRun, Force, Json, Quiet, Recipe, Set


def compare(
    recipe: Recipe,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder of the comparison; default runs/<recipe>-compare."),
    ] = None,
    overrides: Set = [],  # noqa: B006 - typer copies it
    force: Force = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Put criteria head to head: overlap, stability, loss and tasks against random plans, and each other."""
    call = Call("compare", recipe, output, overrides, force)

    def work() -> int:
        if dry_run:
            show_forecast("compare", call.checked(), as_json)
            return 0
        prepared = call.prepared()
        with waiting("loading libraries", quiet):
            from prune.compare.comparison import ComparisonRun
        result = ComparisonRun(prepared).execute()
        show.print_json(result) if as_json else show.comparison(result)
        return 0

    guarded(work, quiet, debug)
