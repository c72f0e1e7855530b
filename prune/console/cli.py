"""`excise`: parses, calls one function, prints. Results go to stdout, everything else to stderr."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from criteria.text.bos import Bos
from experts.errors import ExciseError
from experts.modes import Mode, Scope
from prune.console import show
from prune.console.exits import guarded, waiting
from prune.console.options import Begin, Debug, Dtype, Force, Json, Model, Quiet, Recipe, Set, Shown

if TYPE_CHECKING:
    from prune.audit.result import AuditResult, FileAudit

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=(
    "Excise prunes the experts of mixture-of-experts language models and tests, by intervention, that the ranking it used beats chance."
), epilog=(
    "Calibrations and experiments are kept for all runs in EXCISE_CACHE, by default ~/.cache/excise. Exit codes: 0 done, 1 error, "
    "2 usage, 3 the recipe asked to stop on this verdict."
))  # fmt: skip


@app.command()
def prune(
    recipe: Recipe,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Run folder; default runs/<recipe>-<criterion>-<budget>-<scope>."
        ),
    ] = None,
    overrides: Set = [],  # noqa: B006 - typer copies it
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Calibrate, rank, test against random plans, prune, write, reload. A second run resumes after the last finished stage."""

    def work() -> int:
        from prune.recipe.read import read_recipe, recipe_file
        from prune.session.prepare import check_pruning, default_output, prepare

        file = recipe_file(recipe)
        settings = read_recipe(file, overrides)
        check_pruning(settings)
        prepared = prepare(settings, output or default_output(file.stem, settings), force)
        with waiting("loading libraries", quiet):
            from prune.run.pipeline import Run
        outcome = Run(prepared).execute()
        show.verdicts(outcome.result, as_json)
        return 3 if outcome.stopped else 0

    guarded(work, quiet, debug)


@app.command()
def compare(
    recipe: Recipe,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder of the comparison; default runs/<recipe>-compare."),
    ] = None,
    overrides: Set = [],  # noqa: B006 - typer copies it
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Put criteria head to head: overlap, stability, loss and lm-eval tasks against random plans (Holm), and against each other."""

    def work() -> int:
        from prune.recipe.read import read_recipe, recipe_file
        from prune.session.prepare import prepare_comparison

        file = recipe_file(recipe)
        prepared = prepare_comparison(
            read_recipe(file, overrides), output or Path("runs") / f"{file.stem}-compare", force
        )
        with waiting("loading libraries", quiet):
            from prune.compare.comparison import Comparison
        result = Comparison(prepared).execute()
        show.print_json(result) if as_json else show.comparison(result)
        return 0

    guarded(work, quiet, debug)


@app.command()
def audit(
    recipe: Annotated[
        str | None, typer.Argument(help="A YAML file, or the name of a recipe that comes with Excise (demo).")
    ] = None,
    positions: Annotated[
        Path | None,
        typer.Option(
            "--positions", help="Measurements made elsewhere, a CSV row per position; instead of a recipe."
        ),
    ] = None,
    ddof: Annotated[
        int | None,
        typer.Option(
            "--ddof",
            min=0,
            max=1,
            help="Taken off n in the standard deviation of d; default 1, or the recipe's.",
        ),
    ] = None,
    outcome: Annotated[
        Shown, typer.Option("--outcome", help="Whose cells the table shows; --json has all.")
    ] = Shown.DELTA,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the audit; default runs/<recipe>-audit.")
    ] = None,
    overrides: Set = [],  # noqa: B006 - typer copies it
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Ask, token by token, whether a criterion ranks the active experts by what removing them costs."""
    if (recipe is None) == (positions is None):
        raise typer.BadParameter("give a recipe, or --positions FILE.csv")
    if positions is not None and (output or overrides or force):
        raise typer.BadParameter(
            "--positions reads a file and prints: --output, --set and --force belong to a recipe"
        )

    def work() -> int:
        from prune.audit.report import NAMES

        if positions is not None:
            from prune.audit.csv_file import of_file

            result: AuditResult | FileAudit = of_file(positions, 1 if ddof is None else ddof)
        else:
            assert recipe is not None, "checked above"
            result = _audit_of(
                recipe,
                output,
                [*overrides, *([f"validate.audit.ddof={ddof}"] if ddof is not None else [])],
                force,
                quiet,
            )
        if outcome not in result["passing"]:
            raise ExciseError(
                f"--outcome {outcome}: the rows have no columns high_kl and low_kl, so there is no {NAMES[outcome]}"
            )
        show.print_json(result) if as_json else show.audit(result, outcome)
        return 0

    guarded(work, quiet, debug)


def _audit_of(
    recipe: str, output: Path | None, overrides: list[str], force: bool, quiet: bool
) -> "AuditResult":
    from prune.recipe.read import read_recipe, recipe_file
    from prune.session.prepare import prepare_audit

    file = recipe_file(recipe)
    prepared = prepare_audit(
        read_recipe(file, overrides), output or Path("runs") / f"{file.stem}-audit", force
    )
    with waiting("loading libraries", quiet):
        from prune.audit.tokens import Audit
    return Audit(prepared).execute()


@app.command()
def finetune(
    recipe: Annotated[
        str,
        typer.Argument(
            help="A YAML file with a finetune block, or the name of a recipe that comes with Excise."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Run folder; default that of `excise prune`, or runs/<recipe>-finetune."
        ),
    ] = None,
    overrides: Set = [],  # noqa: B006 - typer copies it
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Recover a pruned model by LoRA, and random plans of its size alike: does the criterion's lead survive? Prunes first if need be."""

    def work() -> int:
        from prune.recipe.read import read_recipe, recipe_file
        from prune.session.prepare import prepare_recovery, recovery_output

        file = recipe_file(recipe)
        settings = read_recipe(file, overrides)
        default, folder = recovery_output(file.stem, settings)
        prepared = prepare_recovery(settings, output or default, force)
        with waiting("loading libraries", quiet):
            from prune.recover.recovery import recover_folder
            from prune.run.pipeline import Run
        if folder:
            show.recovery(recover_folder(prepared), as_json)
            return 0
        outcome = Run(prepared).execute()
        recovery = outcome.result["recovery"]
        show.recovery(recovery, as_json) if recovery else show.verdicts(outcome.result, as_json)
        return 3 if outcome.stopped else 0

    guarded(work, quiet, debug)


@app.command()
def effects(
    model: Model,
    text: Annotated[Path, typer.Option("--text", help="UTF-8 text file; cut into windows from its start.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The table: NAME.parquet or NAME.csv.")],
    window: Annotated[int, typer.Option("--window", help="Tokens per window.")] = 256,
    sequences: Annotated[int, typer.Option("--sequences", help="Windows; 0 = all of the text.")] = 0,
    layers: Annotated[
        str | None,
        typer.Option("--layers", help="Decoder layers like 0,2,5 or 0-5; default: all with experts."),
    ] = None,
    experts: Annotated[
        str | None,
        typer.Option("--experts", help="Expert ids like 0,2,5; default: all (in corpus), all active ones."),
    ] = None,
    scope: Annotated[
        Scope,
        typer.Option("--scope", help="Removed at one position, in the sequence, or in the corpus (means)."),
    ] = Scope.POSITION,
    mode: Annotated[Mode, typer.Option("--mode", help="What removal means.")] = Mode.ZERO,
    dtype: Annotated[
        Dtype, typer.Option("--dtype", help="Precision of the model in memory; auto = as stored.")
    ] = Dtype.AUTO,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run model code that comes with the checkpoint.")
    ] = False,
    bos: Begin = Bos.AUTO,
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure what removing each expert costs: the raw table, one row per intervention. An interrupted run resumes."""

    def work() -> int:
        from prune.effects.request import Request, numbers
        from prune.session.prepare import prepare_effects

        chosen = numbers("--layers", layers), numbers("--experts", experts)
        request = Request(
            model,
            text,
            output,
            window,
            sequences,
            *chosen,
            scope,
            mode,
            dtype.value,
            trust_remote_code,
            force,
            bos,
        )
        layout = prepare_effects(request)  # refused before torch is loaded
        with waiting("loading libraries", quiet):
            from prune.effects.measurement import run
        done = run(request, layout)
        show.print_json(done) if as_json else show.effects(done)
        return 0

    guarded(work, quiet, debug)


@app.command()
def export(
    model: Model,
    plan: Annotated[Path, typer.Argument(help="plan.json of a run, or one written by hand.")],
    out: Annotated[Path, typer.Argument(help="Folder of the new checkpoint.")],
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write the checkpoint that keeps what a plan keeps: streamed, verified, atomic, without torch."""

    def work() -> int:
        from experts.disk.fingerprint import fingerprint
        from experts.plan import Plan
        from experts.units import human
        from prune.checkpoint.card import plan_card
        from prune.checkpoint.write import export as write
        from prune.session.prepare import prepare_export

        chosen = Plan.read(plan)
        layout = prepare_export(model, chosen, out, force)
        print_of = fingerprint(layout.checkpoint) if chosen.model else ""  # of no use to a plan for any model
        written = write(layout, chosen, out, plan_card(model, layout, chosen), force, print_of)
        if as_json:
            show.print_json(
                {
                    "checkpoint": str(out),
                    "size": written.size,
                    "removed": written.removed,
                    "notes": written.notes,
                }
            )
        else:
            print(f"{out}: {human(written.size)} of tensors, {human(written.removed)} removed")
            show.notes(written.notes)
        return 0

    guarded(work, quiet, debug)


@app.command()
def inspect(model: Model, as_json: Json = False, debug: Debug = False) -> None:
    """Family, layers, experts, sizes, and what pruning would save: from headers and configuration alone."""

    def work() -> int:
        from prune.inspect import inspect_model

        found = inspect_model(model)
        show.print_json(found) if as_json else show.model(found)
        return 0

    guarded(work, True, debug)


@app.command()
def criteria(as_json: Json = False, debug: Debug = False) -> None:
    """List the criteria: formula, evidence, cost in plain forwards of the calibration text, source."""

    def work() -> int:
        from criteria.registry import CRITERIA

        columns = ("name", "formula", "needs", "cost", "grows", "source")
        listed = [{column: getattr(row, column) for column in columns} for row in CRITERIA.values()]
        settings = {name: row.experiment.options for name, row in CRITERIA.items() if row.experiment}
        if as_json:
            for row in listed:
                options = settings.get(row["name"], {})
                row["settings"] = {
                    name: {"default": option.default, "help": option.help} for name, option in options.items()
                }
            show.print_json(listed)
        else:
            show.criteria(listed, settings)
        return 0

    guarded(work, True, debug)
