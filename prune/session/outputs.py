"""Where commands write by default."""

import re
from pathlib import Path

from experts.errors import ExciseError
from prune.recipe.schema import BUDGETS, Recipe


def recovery_output(recipe_name: str, recipe: Recipe) -> tuple[Path, Path | None]:
    """Where `excise finetune` works by default, and the pruned folder that the recipe names.

    None = its own, in the folder of its pruning.
    """
    if recipe.finetune is None:
        raise ExciseError(
            "the recipe has no finetune block; it needs at least finetune.data, the text to train on"
        )
    pruned = recipe.finetune.checkpoint
    if pruned:
        return Path("runs") / f"{recipe_name}-finetune", pruned
    return default_output(recipe_name, recipe), None


def default_output(recipe_name: str, recipe: Recipe) -> Path:
    """runs/<recipe>-<criterion>-<budget>-<scope>: a folder per way of pruning."""
    budgets = (getattr(recipe.prune, key) for key in BUDGETS)
    budget = next(value for value in budgets if value is not None)
    name = f"{recipe_name}-{recipe.criteria[0]}-{budget}-{recipe.prune.scope}"
    return Path("runs") / re.sub(r"[^\w.-]+", "_", name)
