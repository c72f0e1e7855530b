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
    per_group = shape.experts // shape.groups
    quotas = {layer: np.bincount(np.array(ids) // per_group, minlength=shape.groups) for layer, ids in plan.kept.items()}
    if _possible(quotas, protected, shape) < 2:
        raise ExciseError("validate.random_plans: only one plan of this size is possible, so random plans cannot differ; change the budget")
    rows = [np.random.default_rng([seed, number]) for number in range(count)]
    return [_drawn(plan, quotas, shape, protected, rng, f"random plan {n} (seed {seed})") for n, rng in enumerate(rows)]


def equal_plans(plan: Plan, shape: Shape, protected: Marks, count: int, seed: int) -> list[Plan]:
    """`count` random plans of the same total with equal counts: what does not divide goes to layers drawn anew for every plan.

    The unit is one expert in every router group. A layer with more protected experts than its share keeps them all;
    none keeps fewer than can route.
    """
    units = plan.total // shape.groups
    stay = protected.reshape(len(shape.layers), shape.groups, -1).sum(axis=2).max(axis=1)
    least = np.maximum(stay, shape.smallest // shape.groups)
    found = []
    for number in range(count):
        rng = np.random.default_rng([seed, number, 1])
        counts = np.maximum(units // len(shape.layers), least)
        order = rng.permutation(len(shape.layers))
        while counts.sum() != units:  # the remainder; and what protected experts take elsewhere
            up = counts.sum() < units
            may = counts < shape.experts // shape.groups if up else counts > least
            fits = [row for row in order if may[row]]
            chosen = min(fits, key=lambda row: counts[row]) if up else max(fits, key=lambda row: counts[row])
            counts[chosen] += 1 if up else -1
        quotas = {layer: np.full(shape.groups, counts[row]) for row, layer in enumerate(shape.layers)}
        found.append(_drawn(plan, quotas, shape, protected, rng, f"random plan {number} of equal counts (seed {seed})"))
    return found


def _drawn(plan: Plan, quotas: Quotas, shape: Shape, protected: Marks, rng: np.random.Generator, name: str) -> Plan:
    per_group = shape.experts // shape.groups
    kept = {}
    for row, layer in enumerate(shape.layers):
        order = rng.random(shape.experts)
        order[protected[row]] = -1
        best = order.reshape(shape.groups, per_group).argsort(axis=1)
        ids = [g * per_group + int(i) for g in range(shape.groups) for i in best[g, : quotas[layer][g]]]
        kept[layer] = tuple(sorted(ids))
    return Plan(plan.experts, kept, plan.model, name, plan.budget)


def _possible(quotas: Quotas, protected: Marks, shape: Shape) -> int:
    """Number of different plans with these quotas, counted up to 2."""
    per_group = shape.experts // shape.groups
    grouped = protected.reshape(len(shape.layers), shape.groups, per_group).sum(axis=2)
    for row, layer in enumerate(shape.layers):
        for group in range(shape.groups):
            free = per_group - int(grouped[row, group])
            if math.comb(free, max(int(quotas[layer][group]) - int(grouped[row, group]), 0)) > 1:
                return 2
    return 1
