"""`excise audit`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from experts.errors import ExciseError
from prune.console import completion, show
from prune.console.call import Call
from prune.console.exits import guarded, waiting
from prune.console.forecast import show_forecast
from prune.console.options import Debug, DryRun, Force, Json, Quiet, Set, Shown

if TYPE_CHECKING:
    from prune.audit.result import AuditResult, FileAudit

Recipe = Annotated[
    str | None,
    typer.Argument(
        metavar="RECIPE",
        help="A YAML file, or the name of a recipe that comes with Excise (demo).",
        autocompletion=completion.recipes,
    ),
]


Positions = Annotated[
    Path | None,
    typer.Option(
        "--positions", help="Measurements made elsewhere, a CSV row per position; instead of a recipe."
    ),
]
Ddof = Annotated[
    int | None,
    typer.Option(
        "--ddof",
        min=0,
        max=1,
        help="Taken off n in the standard deviation of d; default 1, or the recipe's.",
    ),
]
Outcome = Annotated[Shown, typer.Option("--outcome", help="Whose cells the table shows; --json has all.")]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="Folder of the audit; default runs/<recipe>-audit.")
]


def audit(
    recipe: Recipe = None,
    positions: Positions = None,
    ddof: Ddof = None,
    outcome: Outcome = Shown.DELTA,
    output: Output = None,
    overrides: Set = [],  # noqa: B006 - typer copies it
    force: Force = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Ask, token by token, whether a criterion ranks the active experts by what removing them costs."""
    if (recipe is None) == (positions is None):
        raise typer.BadParameter("give a recipe, or --positions FILE.csv")
    if positions is not None and (output or overrides or force or dry_run):
        raise typer.BadParameter(
            "--positions reads a file and prints: --output, --set, --force and --dry-run belong to a recipe"
        )
    changes = [] if ddof is None else [f"validate.audit.ddof={ddof}"]
    call = Call("audit", recipe or "", output, [*overrides, *changes], force)

    def work() -> int:
        if dry_run:
            show_forecast("audit", call.checked(), as_json)
            return 0
        result = _audit_of(call, quiet) if positions is None else _audit_of_file(positions, ddof)
        _check_outcome(result, outcome)
        show.print_json(result) if as_json else show.audit(result, outcome)
        return 0

    guarded(work, quiet, debug)


def _audit_of(call: Call, quiet: bool) -> "AuditResult":
    prepared = call.prepared()
    with waiting("loading libraries", quiet):
        from prune.audit.tokens import Audit
    return Audit(prepared).execute()


def _audit_of_file(positions: Path, ddof: int | None) -> "FileAudit":
    from prune.audit.positions_file import audit_of_positions

    return audit_of_positions(positions, 1 if ddof is None else ddof)


def _check_outcome(result: "AuditResult | FileAudit", outcome: Shown) -> None:
    """Refuse an outcome that was not measured."""
    from prune.audit.report import NAMES

    if outcome not in result["passing"]:
        raise ExciseError(
            f"--outcome {outcome}: the rows have no columns high_kl and low_kl, "
            f"so there is no {NAMES[outcome]}"
        )
