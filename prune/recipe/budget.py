"""A recipe's budget in numbers of experts, from headers alone. No torch."""

from collections.abc import Iterable, Iterator
from contextlib import suppress

from criteria.budget import Budget, BudgetScope, from_fraction
from criteria.budget_for import budget_for
from experts.disk.layout import Layout
from experts.errors import ExciseError
from experts.shape import Shape
from prune.recipe.schema import PruneSettings, Recipe


def budget_of(prune: PruneSettings, layout: Layout, scope: BudgetScope | None = None) -> Budget:
    """The budget of a recipe. scope: overrides the recipe's.

    Raises ExciseError with the numbers that conflict, before anything expensive.
    """
    scope = scope or prune.scope
    return budget_for(
        layout,
        fraction=prune.fraction,
        keep=prune.keep,
        target_size=prune.target_size,
        scope=scope,
        floor=prune.floor if scope == "global" else None,
        multiple_of=prune.multiple_of,
    )


def tested_budgets(recipe: Recipe, layout: Layout) -> dict[BudgetScope, Budget]:
    """Budgets whose plans `excise prune` tests: the recipe's own first; beside scope global also scope layer, where it has another plan."""
    own = budget_of(recipe.prune, layout, recipe.prune.scope)
    found: dict[BudgetScope, Budget] = {recipe.prune.scope: own}
    if recipe.prune.scope == "global":
        with suppress(ExciseError):
            other = budget_of(recipe.prune, layout, "layer")
            if other.kept(layout.shape) != own.kept(layout.shape):
                found["layer"] = other
    return found


def compared_budgets(recipe: Recipe, layout: Layout) -> Iterator[Budget]:
    """Those that `excise compare` is asked for, also such that come to the same plans."""
    for scope in recipe.compare.scopes or (recipe.prune.scope,):
        floor = recipe.prune.floor if scope == "global" else None
        for fraction in recipe.compare.fractions:
            yield from_fraction(layout.shape, fraction, scope, floor, recipe.prune.multiple_of)
        if not recipe.compare.fractions:
            yield budget_of(recipe.prune, layout, scope)


def distinct(budgets: Iterable[Budget], shape: Shape) -> tuple[tuple[Budget, ...], tuple[str, ...]]:
    """Budgets that come to different plans, and what was left out: two names of one plan would be one test that is corrected for twice."""
    found: dict[tuple[object, ...], Budget] = {}
    merged: dict[str, None] = {}
    for budget in budgets:
        known = found.setdefault(budget.kept(shape), budget)
        if known.text != budget.text:
            merged[f"{budget.text} keeps what {known.text} keeps: one test, under the name of the latter"] = (
                None
            )
        elif known is not budget:
            merged[
                f"{budget.text} is asked for twice, or leaves nothing for another scope to decide: one test"
            ] = None
    return tuple(found.values()), tuple(merged)
