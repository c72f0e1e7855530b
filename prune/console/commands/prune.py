"""`excise prune`."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from experts.notes import tell
from prune.console import completion, show
from prune.console.call import Call, fetched
from prune.console.exits import guarded, waiting
from prune.console.forecast import show_forecast
from prune.console.next_steps import next_steps
from prune.console.options import Debug, DryRun, Force, Json, Quiet, Set
from prune.console.recipe_text import show_recipe
from prune.starter.request import Wishes, is_recipe

if TYPE_CHECKING:
    from prune.session.prepared import Checked

Subject = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE|MODEL",
        help=(
            "A YAML file, the name of a recipe that comes with Excise (demo), or a model: "
            "a folder, or organisation/name on the hub; @revision may follow."
        ),
        autocompletion=completion.recipes_and_models,
    ),
]
PANEL = "Options of a model without a recipe"
Fraction = Annotated[
    float | None,
    typer.Option("--fraction", help="Share of the experts to remove; default 0.5.", rich_help_panel=PANEL),
]
Keep = Annotated[
    int | None,
    typer.Option("--keep", min=1, help="Experts kept per layer, instead.", rich_help_panel=PANEL),
]
TargetSize = Annotated[
    str | None,
    typer.Option(
        "--target-size", help="Largest size of the weights, like 8GB, instead.", rich_help_panel=PANEL
    ),
]
CriterionName = Annotated[
    str | None,
    typer.Option(
        "--criterion",
        help="Criterion that prunes; default reap.",
        rich_help_panel=PANEL,
        autocompletion=completion.criteria,
    ),
]
TextFile = Annotated[
    Path | None,
    typer.Option(
        "--text",
        help="Plain text, of which a third is held out; default: the model's own text to calibrate on, "
        "the standard library of Python to test on.",
        rich_help_panel=PANEL,
    ),
]
Refit = Annotated[
    bool,
    typer.Option(
        "--refit",
        help="Refit the kept experts' down projections by least squares, of random plans too (refit: {}).",
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", help="Run folder; default runs/<recipe or model>-<criterion>-<budget>-<scope>."
    ),
]


def prune(
    subject: Subject,
    fraction: Fraction = None,
    keep: Keep = None,
    target_size: TargetSize = None,
    criterion: CriterionName = None,
    text: TextFile = None,
    refit: Refit = False,
    output: Output = None,
    overrides: Set = [],  # noqa: B006 - typer copies it
    force: Force = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Calibrate, rank, test against random plans, prune, write, reload.

    A second run resumes from what was finished.
    """
    wishes = Wishes(fraction, keep, target_size, criterion, text)
    _check_options(subject, wishes)
    call = Call("prune", subject, output, [*(["refit={}"] if refit else []), *overrides], force)

    def work() -> int:
        checked = call.checked() if is_recipe(subject) else _checked_model(call, wishes)
        if dry_run:
            _say_of_text(text)
            show_forecast("prune", checked, as_json)
            return 0
        if not is_recipe(subject):
            checked = _divided(checked, text)
            show_recipe(checked, quiet)
        return _run(call, checked, as_json, quiet)

    guarded(work, quiet, debug)


def _run(call: Call, checked: "Checked", as_json: bool, quiet: bool) -> int:
    """Fetch the model, run all stages, print the result."""
    prepared = fetched("prune", checked)
    with waiting("loading libraries", quiet):
        from prune.run.pipeline import Run
    outcome = Run(prepared).execute()
    show.verdicts(outcome.result, as_json)
    if not as_json:
        repeatable = call.recipe if is_recipe(call.recipe) and not call.overrides else None
        next_steps(outcome.result, prepared, repeatable)
    return 3 if outcome.stopped else 0


def _check_options(subject: str, wishes: Wishes) -> None:
    """Options that a recipe has keys for belong to a model, and one budget is enough."""
    if wishes.given and is_recipe(subject):
        raise typer.BadParameter(
            f"{', '.join(wishes.given)}: for a model without a recipe; {subject} is a recipe, "
            "so change its keys by --set, for example --set prune.fraction=0.25"
        )
    if len(wishes.budgets) > 1:
        raise typer.BadParameter(f"give one of {', '.join(wishes.budgets)}: each says how much to remove")


def _checked_model(call: Call, wishes: Wishes) -> "Checked":
    """A model by its own recipe, from headers alone."""
    from prune.session.checked import checked_for
    from prune.session.outputs import default_output
    from prune.starter.defaults import fitted, starter_recipe
    from prune.starter.passages import check_text
    from prune.starter.request import short_name, subject_name

    model = subject_name(call.recipe)
    if wishes.text is not None:
        check_text(wishes.text)
    recipe = starter_recipe(model, wishes, call.overrides)
    folder = call.output or default_output(short_name(model), recipe)
    return fitted(checked_for("prune", recipe, folder, call.force))


def _say_of_text(text: Path | None) -> None:
    if text is not None:
        parts = "the run folder keeps both parts under text/"
        tell(f"{text}: every third passage is held out for the test; {parts}; a passage counts as a document")


def _divided(checked: "Checked", text: Path | None) -> "Checked":
    """The same with the text of --text as two files in the run folder."""
    if text is None:
        return checked
    from prune.starter.defaults import with_parts
    from prune.starter.passages import divided

    folder = checked.folder.path / "text"
    with checked.folder.held():
        seen, held_out = divided(text, folder)
    _say_of_text(text)
    return replace(checked, recipe=with_parts(checked.recipe, text, seen, held_out))
