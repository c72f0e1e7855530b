"""A recipe's budget in numbers of experts, from headers alone."""

from collections.abc import Iterable, Iterator
from contextlib import suppress

from criteria.budget import Budget, BudgetScope, from_fraction
from criteria.budget_request import budget_for
from experts.disk.layout import Layout
from experts.errors import ExciseError, settings_of
from experts.shape import Shape
from prune.recipe.schema import PruneSettings, Recipe


def budget_of(prune: PruneSettings, layout: Layout, scope: BudgetScope | None = None) -> Budget:
    """The budget of a recipe.

    Args:
        scope: overrides the recipe's.

    Raises:
        ExciseError: numbers that conflict, each named.
    """
    scope = scope or prune.scope
    with settings_of("prune"):
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
    """Budgets whose plans `excise prune` tests, the recipe's own first.

    Beside scope global that is also scope layer, where it is possible and comes to another plan.
    """
    own = budget_of(recipe.prune, layout, recipe.prune.scope)
    budgets: dict[BudgetScope, Budget] = {recipe.prune.scope: own}
    if recipe.prune.scope == "global":
        with suppress(ExciseError):
            by_layer = budget_of(recipe.prune, layout, "layer")
            if by_layer.kept(layout.shape) != own.kept(layout.shape):
                budgets["layer"] = by_layer
    return budgets


def compared_budgets(recipe: Recipe, layout: Layout) -> Iterator[Budget]:
    """Budgets that `excise compare` is asked for; some may come to the same plans."""
    for scope in recipe.compare.scopes or (recipe.prune.scope,):
        floor = recipe.prune.floor if scope == "global" else None
        for fraction in recipe.compare.fractions:
            with settings_of("prune"):
                budget = from_fraction(layout.shape, fraction, scope, floor, recipe.prune.multiple_of)
            yield budget
        if not recipe.compare.fractions:
            yield budget_of(recipe.prune, layout, scope)


def distinct(budgets: Iterable[Budget], shape: Shape) -> tuple[tuple[Budget, ...], tuple[str, ...]]:
    """Budgets that come to different plans.

    Two names of one plan would be one test that is corrected for twice.

    Returns:
        The budgets, and a note on each that was left out.
    """
    by_plan: dict[tuple[object, ...], Budget] = {}
    notes: dict[str, None] = {}
    for budget in budgets:
        first = by_plan.setdefault(budget.kept(shape), budget)
        if first is not budget:
            notes[_left_out(budget, first)] = None
    return tuple(by_plan.values()), tuple(notes)


def _left_out(budget: Budget, first: Budget) -> str:
    """Why a budget is no test of its own."""
    if budget.text != first.text:
        return f"{budget.text} keeps what {first.text} keeps: one test, under the name of the latter"
    return f"{budget.text} is asked for twice, or leaves nothing for another scope to decide: one test"
