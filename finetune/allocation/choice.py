"""The counts that cost least in all: dynamic programming over the layers, exact."""

from collections.abc import Sequence

import numpy as np

from experts.arrays import Array, Ids
from experts.errors import ExciseError


def cheapest(costs: Array, counts: Sequence[int], total: int) -> tuple[int, ...]:
    """The counts c_l with Σ c_l = total for which Σ costs[l, c_l] is lowest.

    With B_l(t) the lowest cost of layers 0 … l that keep t experts in all,

        B_l(t) = min over c of B_{l−1}(t − c) + costs[l, c].

    Of equally cheap choices the upper layers keep fewer experts.

    Args:
        costs: of every count in every layer [L, C]; ∞ = not allowed
        counts: ascending, equally far apart [C]
        total: experts that all layers keep together

    Returns:
        Experts that each layer keeps [L].

    Raises:
        ExciseError: no counts come to the total.
    """
    layers, unit = len(costs), counts[1] - counts[0] if len(counts) > 1 else 1
    spare, rest = divmod(total - layers * counts[0], unit)  # units that are left above the lowest counts
    chosen = [] if rest or spare < 0 else _steps(costs, spare)
    if not chosen:
        raise ExciseError(
            f"{layers} layers that keep {counts[0]} to {counts[-1]} experts each, in steps of {unit}, cannot "
            f"keep {total} in all with what has to stay in them; change the budget, its floor or multiple_of"
        )
    return tuple(counts[0] + unit * step for step in chosen)


def _steps(costs: Array, spare: int) -> list[int]:
    """How many units every layer keeps above the lowest count [L]; empty where nothing comes to `spare`."""
    best = np.full(spare + 1, np.inf)
    best[0] = 0.0
    taken: list[Ids] = []
    for row in costs:
        options = np.full((len(row), spare + 1), np.inf)
        for step, cost in enumerate(row[: spare + 1]):
            options[step, step:] = best[: spare + 1 - step] + cost
        taken.append(options.argmin(axis=0))
        best = options.min(axis=0)
    if not np.isfinite(best[spare]):
        return []
    chosen = []
    for step_of in reversed(taken):
        chosen.append(int(step_of[spare]))
        spare -= chosen[-1]
    return chosen[::-1]
