"""What each command of a recipe refuses before any weight is downloaded."""

from collections.abc import Callable
from pathlib import Path

from prune.checkpoint.provenance import promised_plan
from prune.recipe.schema import Recipe
from prune.session.prepare import check, check_texts
from prune.session.prepared import Checked
from prune.session.refusals import check_audit, check_comparison, check_pruning, check_refitted_recovery

CommandCheck = Callable[[Checked], None]


def checked_for(command: str, recipe: Recipe, folder: Path, force: bool = False) -> Checked:
    """Check a recipe for one command, from headers alone.

    Args:
        command: prune, compare, audit or finetune.
        folder: where the command is to work.
        force: replace what is there.

    Raises:
        ExciseError: the first problem, in one line.
    """
    if command == "prune":
        check_pruning(recipe)
    checked = check(recipe, folder, force)
    if command in CHECKS:
        CHECKS[command](checked)
    return checked


def rehearse(command: str, checked: Checked) -> None:
    """Refuse what an export would be refused for at the end, where the command exports.

    A model on the hub gives its small files for it.
    """
    finetune = checked.recipe.finetune
    from_folder = command == "finetune" and finetune is not None and finetune.checkpoint is not None
    if command in ("prune", "finetune") and not from_folder:
        checked.rehearse_export()


def _check_recovery(checked: Checked) -> None:
    """A pruned folder of another model is refused."""
    finetune = checked.recipe.finetune
    if finetune is None:
        return
    check_texts(finetune=finetune)
    check_refitted_recovery(checked.recipe)
    if finetune.checkpoint:
        promised_plan(finetune.checkpoint, checked.layout, refitted=checked.recipe.refit is not None)


CHECKS: dict[str, CommandCheck] = {
    "compare": check_comparison,
    "audit": check_audit,
    "finetune": _check_recovery,
}
