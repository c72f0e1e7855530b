"""A recipe's budget in numbers of experts, from headers alone. No torch."""

from collections.abc import Iterable, Iterator
from contextlib import suppress

from criteria.budget import Budget, Scope, from_counts, from_fraction, from_keep, from_total
from experts.disk.layout import Layout
from experts.errors import ExciseError
from experts.shape import Shape
from experts.units import human, parse_size
from prune.recipe.schema import PruneSettings, Recipe


def budget_of(prune: PruneSettings, layout: Layout, scope: Scope | None = None) -> Budget:
    """Raises ExciseError with the numbers that conflict, before anything expensive. scope: overrides the recipe's."""
    shape, scope = layout.shape, scope or prune.scope
    floor = prune.floor if scope == "global" else None
    if prune.fraction is not None:
        return from_fraction(shape, prune.fraction, scope, floor, prune.multiple_of)
    if isinstance(prune.keep, dict):
        return from_counts(shape, prune.keep, prune.multiple_of)
    if prune.keep is not None:
        return from_keep(shape, prune.keep, scope, floor, multiple=prune.multiple_of)
    assert prune.target_size is not None
    target, unit = parse_size(prune.target_size), prune.multiple_of
    total = (
        _keep_within(layout, target, shape) // unit * unit * len(shape.layers)
    )  # down: the size is a promise
    if scope == "global":
        total = min(total, _total_within(layout, target, shape) // unit * unit)
    return from_total(shape, total, scope, floor, f"target_size={prune.target_size} scope={scope}", unit)


def _keep_within(layout: Layout, target: int, shape: Shape) -> int:
    """Most experts per layer with which all tensors fit into `target` bytes; a multiple of the router groups."""
    size = layout.checkpoint.size - sum(tensor.size for tensor in layout.predicting)
    per_step = sum(layout.bytes_per_expert.values())  # one expert less in every layer
    smallest = size - per_step * (shape.num_experts - shape.smallest)
    if target < smallest:
        raise ExciseError(
            f"prune.target_size is {human(target)}, but with the fewest experts that can route ({shape.smallest} per layer) "
            f"the model still has {human(smallest)}"
        )
    keep = min(shape.num_experts, shape.num_experts + (target - size) // per_step)
    if keep == shape.num_experts:
        raise ExciseError(
            f"prune.target_size is {human(target)} and the model has {human(size)}: nothing to prune"
        )
    return shape.even_below(keep)


def _total_within(layout: Layout, target: int, shape: Shape) -> int:
    """Most experts in all that fit into `target` bytes wherever the scores put them: at worst the lightest go. A multiple of the groups."""
    size = layout.checkpoint.size - sum(tensor.size for tensor in layout.predicting)
    kept = shape.num_experts * len(shape.layers)
    for weight in sorted(layout.bytes_per_expert.values()):
        for _ in range(shape.per_group(shape.num_experts - shape.smallest)):
            if size <= target:
                return kept
            size, kept = size - weight * shape.groups, kept - shape.groups
    return kept


def tested_budgets(recipe: Recipe, layout: Layout) -> dict[Scope, Budget]:
    """Budgets whose plans `excise prune` tests: the recipe's own first; beside scope global also scope layer, where it has another plan."""
    own = budget_of(recipe.prune, layout, recipe.prune.scope)
    found: dict[Scope, Budget] = {recipe.prune.scope: own}
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
