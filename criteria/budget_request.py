"""The budget that a user asks for: a share of the experts, a count per layer, or a size in bytes."""

from collections.abc import Mapping
from numbers import Real
from typing import TYPE_CHECKING, get_args

from criteria.budget import Budget, BudgetScope, from_counts, from_fraction, from_keep, from_total
from experts.arguments import check_choice, check_count, check_kind, shown
from experts.disk.layout import Layout
from experts.errors import ExciseError, SettingError
from experts.units import human, parse_size

if TYPE_CHECKING:
    from experts.model import Model


def budget_for(
    model: "Model | Layout",
    *,
    fraction: float | None = None,
    keep: int | Mapping[int, int] | None = None,
    target_size: str | None = None,
    scope: BudgetScope = "layer",
    floor: int | None = None,
    multiple_of: int = 1,
) -> Budget:
    """Say how many experts of a model a plan may keep.

    `criteria.select` takes the same arguments. A criterion that searches (causal_greedy) needs the budget
    before it is scored: `criteria.score(model, "causal_greedy", text, budget=…)`.

    Args:
        model: a loaded model, or the layout of one
        fraction: share of the experts to remove, in (0, 1)
        keep: experts kept per layer (on average, in scope global), or decoder layer -> count for some layers
        target_size: largest size of all weights together, for example 8GB
        scope: layer = the same count in every layer; global = the lowest scores of the whole model go
        floor: fewest experts a layer keeps, in scope global; by default as few as can route
        multiple_of: every layer's count is a multiple of it

    Returns:
        The budget: `total` experts in the whole model.

    Raises:
        ExciseError: not exactly one of fraction, keep and target_size; or numbers that conflict, each named.

    Example:
        >>> import criteria, experts
        >>> model = experts.load("demo")
        >>> criteria.budget_for(model, fraction=0.5).total
        48
    """
    if sum(value is not None for value in (fraction, keep, target_size)) != 1:
        raise ExciseError("give exactly one of fraction, keep, target_size")
    _check_arguments(fraction, keep, target_size, scope, floor, multiple_of)
    layout = _layout_of(model)
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


def _layout_of(model: "Model | Layout") -> Layout:
    layout = model if isinstance(model, Layout) else getattr(model, "layout", None)
    if not isinstance(layout, Layout):
        raise ExciseError(f"model: expected a model of experts.load, got {shown(model)}")
    return layout


def _check_arguments(
    fraction: object, keep: object, target_size: object, scope: object, floor: object, multiple_of: object
) -> None:
    """Refuse what is of no use as a number, a size or a scope."""
    if fraction is not None:
        check_kind("fraction", fraction, Real, "a share of the experts, such as 0.5")
    if isinstance(keep, Mapping):
        for layer, count in keep.items():
            check_count(f"keep, layer {layer}", count)
    elif keep is not None:
        check_count("keep", keep)
    if target_size is not None:
        check_kind("target_size", target_size, str, "a size in words, such as '8GB'")
    check_choice("scope", scope, get_args(BudgetScope))
    if floor is not None:
        check_kind("floor", floor, int, "a number of experts")
    check_count("multiple_of", multiple_of)


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
        raise SettingError(
            f"target_size is {human(target)}, but with the fewest experts that can route "
            f"({shape.smallest} per layer) the model still has {human(smallest)}"
        )
    keep = min(shape.num_experts, shape.num_experts + (target - size) // per_step)
    if keep == shape.num_experts:
        raise SettingError(
            f"target_size is {human(target)} and the model has {human(size)}: nothing to prune"
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
