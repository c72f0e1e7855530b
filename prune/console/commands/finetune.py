"""`excise finetune`."""

from pathlib import Path
from typing import Annotated

import typer

from prune.console import completion, show
from prune.console.call import Call
from prune.console.exits import guarded, waiting
from prune.console.forecast import show_forecast
from prune.console.options import Debug, DryRun, Force, Json, Quiet, Set

Recipe = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="A YAML file with a finetune block, or the name of a recipe that comes with Excise.",
        autocompletion=completion.recipes,
    ),
]


def finetune(
    recipe: Recipe,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Run folder; default that of `excise prune`, or runs/<recipe>-finetune."
        ),
    ] = None,
    overrides: Set = [],  # noqa: B006 - typer copies it
    force: Force = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Recover a pruned model by LoRA, and random plans of its size alike: does the criterion's lead survive?

    Prunes first if need be.
    """
    call = Call("finetune", recipe, output, overrides, force)

    def work() -> int:
        if dry_run:
            show_forecast("finetune", call.checked(), as_json)
            return 0
        prepared = call.prepared()
        with waiting("loading libraries", quiet):
            from prune.recover.recovery import recover_folder
            from prune.run.pipeline import Run
        if prepared.recipe.finetune and prepared.recipe.finetune.checkpoint:
            show.recovery(recover_folder(prepared), as_json)
            return 0
        outcome = Run(prepared).execute()
        recovery = outcome.result["recovery"]
        show.recovery(recovery, as_json) if recovery else show.verdicts(outcome.result, as_json)
        return 3 if outcome.stopped else 0

    guarded(work, quiet, debug)
