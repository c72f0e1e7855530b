"""Refusals of single commands: a comparison or audit that cannot pass, a recovery without its text."""

from experts.errors import ExciseError
from prune.recipe.schema import Recipe, ValidateSettings
from prune.session.prepare import check_texts
from prune.session.prepared import Checked, Prepared
from validate.verdict import ALPHA, Null


def check_comparison(prepared: Checked | Prepared) -> None:
    """Refuse a comparison that cannot come to any verdict.

    A p from counting is never below 1 / (R + 1), and Holm multiplies it by the number of tests.
    """
    from validate.statistics import random_plans_needed  # scipy, statsmodels: a second

    settings = prepared.recipe.validation
    tests = len(prepared.criteria) * len(prepared.compared)
    key, plans = _fewest_random_plans(settings)
    needed = random_plans_needed(tests, ALPHA)
    if settings.chance is Null.COUNTED and plans < needed:
        raise ExciseError(
            f"{key} is {plans}: after Holm over {tests} tests (criteria × budgets) no p can fall below "
            f"{tests / (plans + 1):.2g}, so nothing could beat chance; take at least {needed}, "
            "compare fewer criteria or fractions, or set validate.chance=normal, "
            "which reads p from a t distribution through the random plans"
        )


def _fewest_random_plans(settings: ValidateSettings) -> tuple[str, int]:
    """The key that limits the random plans most, and its value."""
    of_tasks = settings.tasks.random_plans if settings.tasks else None
    if of_tasks and of_tasks < settings.random_plans:
        return "validate.tasks.random_plans", of_tasks
    return "validate.random_plans", settings.random_plans


def check_audit(prepared: Checked | Prepared) -> None:
    """Refuse an audit of layers that are not there, and one of too few positions for any cell to pass."""
    from validate.statistics import documents_needed  # scipy, statsmodels: a second

    settings, layers = prepared.recipe.validation.audit, prepared.shape.layers
    for layer in settings.layers:
        if layer not in layers:
            known = f"the layers with experts are {list(layers)}"
            raise ExciseError(f"validate.audit.layers: layer {layer} is dense or absent; {known}")
    cells = len(set(settings.layers or layers)) * len(prepared.criteria)
    needed = documents_needed(cells, ALPHA)
    if settings.positions != "all" and settings.positions < needed:
        raise ExciseError(
            f"validate.audit.positions is {settings.positions}: after correction for {cells} cells "
            f"(criteria × layers) the Wilcoxon test cannot pass with fewer than {needed} positions"
        )


def check_refitted_recovery(recipe: Recipe) -> None:
    """Refuse a teacher that would share the weights that a refit changes."""
    if recipe.refit and recipe.finetune and recipe.finetune.teacher.keep == "memory":
        raise ExciseError(
            "finetune.teacher.keep: memory shares the weights of the unpruned model, which a refit changes; "
            "with `refit` take disk (or auto)"
        )


def check_pruning(recipe: Recipe) -> None:
    """Refuse what `excise finetune` is for, and a recovery without its text."""
    if recipe.finetune:
        if recipe.finetune.checkpoint:
            raise ExciseError(
                "finetune.checkpoint names a pruned folder: "
                "`excise finetune` recovers it, `excise prune` prunes"
            )
        if recipe.refit:
            check_refitted_recovery(recipe)
        check_texts(finetune=recipe.finetune)
