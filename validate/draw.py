"""Random plans of the size of another one: of its counts in every layer, or of its total in equal counts."""

import math

import numpy as np
from numpy.typing import NDArray

from experts.errors import ExciseError
from experts.plan import Plan
from experts.shape import Shape

Marks = NDArray[np.bool_]
Quotas = dict[int, NDArray[np.int64]]  # layer -> experts kept in each router group


def random_plans(plan: Plan, shape: Shape, protected: Marks, count: int, seed: int) -> list[Plan]:
    """`count` plans that keep, in every layer and router group, as many experts as `plan`, chosen at random; protected ones stay."""
    quotas = {layer: np.array(shape.group_counts(ids)) for layer, ids in plan.kept.items()}
    if _possible(quotas, protected, shape) < 2:
        raise ExciseError(
            "validate.random_plans: only one plan of this size is possible, so random plans cannot differ; change the budget"
        )
    generators = [np.random.default_rng([seed, number]) for number in range(count)]
    return [
        _drawn(plan, quotas, shape, protected, rng, f"random plan {n} (seed {seed})")
        for n, rng in enumerate(generators)
    ]


def equal_plans(plan: Plan, shape: Shape, protected: Marks, count: int, seed: int) -> list[Plan]:
    """`count` random plans of the same total with equal counts: what does not divide goes to layers drawn anew for every plan.

    A layer with more protected experts than its share keeps them all; none keeps fewer than can route.
    """
    found = []
    for number in range(count):
        rng = np.random.default_rng([seed, number, 1])
        counts = _equal_counts(shape, shape.per_group(plan.total), protected, rng)
        quotas = {
            layer: np.full(shape.groups, count) for layer, count in zip(shape.layers, counts, strict=True)
        }
        found.append(
            _drawn(plan, quotas, shape, protected, rng, f"random plan {number} of equal counts (seed {seed})")
        )
    return found


def _equal_counts(shape: Shape, units: int, protected: Marks, rng: np.random.Generator) -> NDArray[np.int64]:
    """Experts that each layer keeps of every router group [L], `units` in all."""
    stay = shape.grouped(protected).sum(axis=2).max(axis=1)
    least = np.maximum(stay, shape.per_group(shape.smallest))
    counts: NDArray[np.int64] = np.maximum(units // shape.num_layers, least)
    order = rng.permutation(shape.num_layers)
    while counts.sum() < units:  # the remainder, to the layers that keep fewest
        open_layers = [row for row in order if counts[row] < shape.group_size]
        counts[min(open_layers, key=lambda row: counts[row])] += 1
    while counts.sum() > units:  # what protected experts take elsewhere, from the layers that keep most
        open_layers = [row for row in order if counts[row] > least[row]]
        counts[max(open_layers, key=lambda row: counts[row])] -= 1
    return counts


def _drawn(
    plan: Plan, quotas: Quotas, shape: Shape, protected: Marks, rng: np.random.Generator, name: str
) -> Plan:
    kept = {}
    for row, layer in enumerate(shape.layers):
        order = rng.random(shape.num_experts)
        order[protected[row]] = -1
        best = shape.grouped(order).argsort(axis=1)  # [groups, E / groups]
        starts = range(0, shape.num_experts, shape.group_size)
        ids = [
            start + int(i)
            for start, ranks, quota in zip(starts, best, quotas[layer], strict=True)
            for i in ranks[:quota]
        ]
        kept[layer] = tuple(sorted(ids))
    return Plan(plan.num_experts, kept, plan.model, name, plan.budget)


def _possible(quotas: Quotas, protected: Marks, shape: Shape) -> int:
    """Number of different plans with these quotas, counted up to 2."""
    grouped = shape.grouped(protected).sum(axis=2)  # [L, groups]
    for row, layer in enumerate(shape.layers):
        for quota, stay in zip(quotas[layer], grouped[row], strict=True):
            if math.comb(shape.group_size - int(stay), max(int(quota) - int(stay), 0)) > 1:
                return 2
    return 1
