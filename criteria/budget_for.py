"""The budget that a user asks for: a share of the experts, a count per layer, or a size in bytes."""

from collections.abc import Mapping

from criteria.budget import Budget, BudgetScope, from_counts, from_fraction, from_keep, from_total
from experts.disk.layout import Layout
from experts.errors import ExciseError
from experts.units import human, parse_size


def budget_for(
    layout: Layout,
    *,
    fraction: float | None = None,
    keep: int | Mapping[int, int] | None = None,
    target_size: str | None = None,
    scope: BudgetScope = "layer",
    floor: int | None = None,
    multiple_of: int = 1,
) -> Budget:
    """What a plan may keep.

    Args:
        layout: the model's shape, and the bytes of its experts; the rest is documented in
            `criteria.ranking.select`

    Raises:
        ExciseError: not exactly one of fraction, keep and target_size; or numbers that conflict, each named.
    """
    if sum(value is not None for value in (fraction, keep, target_size)) != 1:
        raise ExciseError("give exactly one of fraction, keep, target_size")
    shape = layout.shape
    if fraction is not None:
        return from_fraction(shape, fraction, scope, floor, multiple_of)
    if isinstance(keep, Mapping):
        return from_counts(shape, keep, multiple_of)
    if keep is not None:
        return from_keep(shape, keep, scope, floor, multiple=multiple_of)
    assert target_size is not None, "one of three"
    total = _total_for(layout, target_size, scope, multiple_of)
    return from_total(shape, total, scope, floor, f"target_size={target_size} scope={scope}", multiple_of)


def _total_for(layout: Layout, target_size: str, scope: BudgetScope, multiple_of: int) -> int:
    """Experts kept in the whole model; rounded down, because the size is a promise."""
    try:
        target = parse_size(target_size)
    except ValueError as error:
        raise ExciseError(str(error)) from None
    per_layer = _keep_within(layout, target) // multiple_of * multiple_of
    total = per_layer * layout.shape.num_layers
    if scope == "global":
        total = min(total, _total_within(layout, target) // multiple_of * multiple_of)
    return total


def _keep_within(layout: Layout, target: int) -> int:
    """Most experts per layer with which all tensors fit into `target` bytes; the groups share them evenly."""
    shape, size = layout.shape, layout.kept_size
    per_step = sum(layout.bytes_per_expert.values())  # one expert less in every layer
    smallest = size - per_step * (shape.num_experts - shape.smallest)
    if target < smallest:
        raise ExciseError(
            f"prune.target_size is {human(target)}, but with the fewest experts that can route "
            f"({shape.smallest} per layer) the model still has {human(smallest)}"
        )
    keep = min(shape.num_experts, shape.num_experts + (target - size) // per_step)
    if keep == shape.num_experts:
        raise ExciseError(
            f"prune.target_size is {human(target)} and the model has {human(size)}: nothing to prune"
        )
    return shape.even_below(keep)


def _total_within(layout: Layout, target: int) -> int:
    """Most experts in all that fit into `target` bytes, wherever the scores put them.

    At worst the lightest ones go.

    A multiple of the router groups.
    """
    shape, size = layout.shape, layout.kept_size
    kept = shape.num_experts * len(shape.layers)
    for weight in sorted(layout.bytes_per_expert.values()):
        for _ in range(shape.per_group(shape.num_experts - shape.smallest)):
            if size <= target:
                return kept
            size, kept = size - weight * shape.groups, kept - shape.groups
    return kept
