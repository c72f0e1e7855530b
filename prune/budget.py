"""A recipe's budget in numbers of experts, from headers alone. No torch."""

from criteria.budget import Budget, Scope, Shape, from_counts, from_fraction, from_keep, from_total
from experts.errors import ExciseError
from prune.format import human
from prune.layout import Layout
from prune.recipe import Prune, parse_size


def budget_of(prune: Prune, layout: Layout, scope: Scope | None = None) -> Budget:
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
    total = _keep_within(layout, target, shape) // unit * unit * len(shape.layers)  # down: the size is a promise
    if scope == "global":
        total = min(total, _total_within(layout, target, shape) // unit * unit)
    return from_total(shape, total, scope, floor, f"target_size={prune.target_size} scope={scope}", unit)


def _keep_within(layout: Layout, target: int, shape: Shape) -> int:
    """Most experts per layer with which all tensors fit into `target` bytes; a multiple of the router groups."""
    size = layout.checkpoint.size - sum(tensor.size for tensor in layout.predicting)
    per_step = sum(layout.bytes_per_expert.values())  # one expert less in every layer
    smallest = size - per_step * (shape.experts - shape.smallest)
    if target < smallest:
        raise ExciseError(
            f"prune.target_size is {human(target)}, but with the fewest experts that can route ({shape.smallest} per layer) "
            f"the model still has {human(smallest)}"
        )
    keep = min(shape.experts, shape.experts + (target - size) // per_step)
    if keep == shape.experts:
        raise ExciseError(f"prune.target_size is {human(target)} and the model has {human(size)}: nothing to prune")
    return keep // shape.groups * shape.groups


def _total_within(layout: Layout, target: int, shape: Shape) -> int:
    """Most experts in all that fit into `target` bytes wherever the scores put them: at worst the lightest go. A multiple of the groups."""
    size = layout.checkpoint.size - sum(tensor.size for tensor in layout.predicting)
    kept = shape.experts * len(shape.layers)
    for weight in sorted(layout.bytes_per_expert.values()):
        for _ in range((shape.experts - shape.smallest) // shape.groups):
            if size <= target:
                return kept
            size, kept = size - weight * shape.groups, kept - shape.groups
    return kept
