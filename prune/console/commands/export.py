"""`excise export`."""

from pathlib import Path
from typing import Annotated

import typer

from prune.console import show
from prune.console.exits import guarded
from prune.console.options import Debug, Force, Json, Model, Quiet


def export(
    model: Model,
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="plan.json of a run, or one written by hand.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the new checkpoint.")],
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write the checkpoint that keeps what a plan keeps: streamed, verified, atomic, without torch."""

    def work() -> int:
        from experts.plan import Plan
        from experts.units import human
        from prune.checkpoint.export_plan import export_plan
        from prune.checkpoint.prepare import prepare_export

        chosen = Plan.read(plan)
        layout = prepare_export(model, chosen, out, force)
        written = export_plan(layout, chosen, out, name=model, force=force)
        if as_json:
            sizes = {"size": written.size, "removed": written.removed}
            show.print_json({"checkpoint": str(out), **sizes, "notes": written.notes})
            return 0
        print(f"{out}: {human(written.size)} of tensors, {human(written.removed)} removed")
        show.notes(written.notes)
        return 0

    guarded(work, quiet, debug)
