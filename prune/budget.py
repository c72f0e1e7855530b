"""A recipe's budget in numbers of experts, from headers alone. No torch."""

from criteria.budget import Budget, Scope, Shape, from_counts, from_fraction, from_keep
from experts.errors import ExciseError
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
    keep = (
        _keep_within(layout, parse_size(prune.target_size), shape) // prune.multiple_of * prune.multiple_of
    )  # down: the size is a promise
    return from_keep(shape, keep, scope, floor, f"target_size={prune.target_size} scope={scope}", prune.multiple_of)


def _keep_within(layout: Layout, target: int, shape: Shape) -> int:
    """Most experts per layer with which all tensors fit into `target` bytes; a multiple of the router groups."""
    size = layout.checkpoint.size - sum(tensor.size for tensor in layout.predicting)
    per_step = sum(layout.bytes_per_expert.values())  # one expert less in every layer
    smallest = size - per_step * (shape.experts - shape.smallest)
    if target < smallest:
        raise ExciseError(
            f"prune.target_size is {target / 1e9:.3f} GB, but with the fewest experts that can route ({shape.smallest} per layer) "
            f"the model still has {smallest / 1e9:.3f} GB"
        )
    keep = min(shape.experts, shape.experts + (target - size) // per_step)
    if keep == shape.experts:
        raise ExciseError(f"prune.target_size is {target / 1e9:.3f} GB and the model has {size / 1e9:.3f} GB: nothing to prune")
    return keep // shape.groups * shape.groups
