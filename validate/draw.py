"""Random plans of the size of another one: of its counts in every layer, or of its total in equal counts."""

import math

import numpy as np

from experts.arrays import Array, Ids, Marks
from experts.errors import ExciseError
from experts.plan import Plan
from experts.shape import Shape

Quotas = dict[int, Ids]  # decoder layer -> experts kept in each router group


def random_plans(plan: Plan, shape: Shape, protected: Marks, count: int, seed: int) -> list[Plan]:
    """Draw plans that keep as many experts as `plan` in every layer and router group, chosen at random.

    Args:
        plan: what is matched
        shape: of the model
        protected: experts that every plan keeps [L, E]
        count: how many plans
        seed: plan number n is the same for any `count` > n

    Raises:
        ExciseError: if only one plan of this size is possible.
    """
    quotas = {layer: np.array(shape.group_counts(ids)) for layer, ids in plan.kept.items()}
    if not _can_differ(quotas, protected, shape):
        raise ExciseError(
            "validate.random_plans: only one plan of this size is possible, so random plans cannot differ; "
            "change the budget"
        )
    plans = []
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        name = f"random plan {number} (seed {seed})"
        plans.append(_draw(plan, quotas, shape, protected, rng, name))
    return plans


def equal_plans(plan: Plan, shape: Shape, protected: Marks, count: int, seed: int) -> list[Plan]:
    """Draw random plans of the same total as `plan`, with equal counts in all layers.

    What does not divide goes to layers that are drawn anew for every plan. A layer with more protected
    experts than its share keeps them all; none keeps fewer than can route.

    Args:
        plan: whose total is matched
        shape: of the model
        protected: experts that every plan keeps [L, E]
        count: how many plans
        seed: plan number n is the same for any `count` > n
    """
    plans = []
    for number in range(count):
        rng = np.random.default_rng([seed, number, 1])
        counts = _equal_counts(shape, shape.per_group(plan.total), protected, rng)
        quotas = {
            layer: np.full(shape.groups, quota) for layer, quota in zip(shape.layers, counts, strict=True)
        }
        name = f"random plan {number} of equal counts (seed {seed})"
        plans.append(_draw(plan, quotas, shape, protected, rng, name))
    return plans


def _equal_counts(shape: Shape, units: int, protected: Marks, rng: np.random.Generator) -> Ids:
    """Experts that each layer keeps of every router group [L], `units` in all."""
    protected_counts = shape.grouped(protected).sum(axis=2).max(axis=1)
    least = np.maximum(protected_counts, shape.per_group(shape.smallest))
    counts: Ids = np.maximum(units // shape.num_layers, least)
    order = rng.permutation(shape.num_layers)
    while counts.sum() < units:  # the remainder, to the layers that keep fewest
        open_rows = [row for row in order if counts[row] < shape.group_size]
        counts[min(open_rows, key=lambda row: counts[row])] += 1
    while counts.sum() > units:  # what protected experts take elsewhere, from the layers that keep most
        open_rows = [row for row in order if counts[row] > least[row]]
        counts[max(open_rows, key=lambda row: counts[row])] -= 1
    return counts


def _draw(
    plan: Plan, quotas: Quotas, shape: Shape, protected: Marks, rng: np.random.Generator, name: str
) -> Plan:
    kept = {}
    for row, layer in enumerate(shape.layers):
        order = rng.random(shape.num_experts)
        order[protected[row]] = -1
        kept[layer] = _first_of_each_group(shape, order, quotas[layer])
    return Plan(plan.num_experts, kept, plan.model, name, plan.budget)


def _first_of_each_group(shape: Shape, order: Array, quotas: Ids) -> tuple[int, ...]:
    """The ids with the lowest `order` [E] in each group, as many as its quota, ascending."""
    ranks = shape.grouped(order).argsort(axis=1)  # [groups, E / groups]
    ids: list[int] = []
    for group, quota in enumerate(quotas):
        start = group * shape.group_size
        ids += [start + int(place) for place in ranks[group, :quota]]
    return tuple(sorted(ids))


def _can_differ(quotas: Quotas, protected: Marks, shape: Shape) -> bool:
    """Whether more than one plan has these quotas."""
    protected_counts = shape.grouped(protected).sum(axis=2)  # [L, groups]
    for row, layer in enumerate(shape.layers):
        for quota, protected_here in zip(quotas[layer], protected_counts[row], strict=True):
            free = shape.group_size - int(protected_here)
            if math.comb(free, max(int(quota) - int(protected_here), 0)) > 1:
                return True
    return False
