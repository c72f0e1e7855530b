"""max_min: weights of the domains that make the worst domain's coverage as large as it can be."""

from collections.abc import Callable

import numpy as np

from criteria.by_name import resolve
from criteria.experiment_context import ExperimentContext
from criteria.scores import Scores, score
from criteria.selection import plan_for
from criteria.statistics import Statistics
from experts.arrays import Array, Marks
from experts.errors import ExciseError

RATE = 4.0  # how far a domain's weight moves when its coverage is 1 below the mean


def max_min(context: ExperimentContext, of: str, patience: int) -> dict[str, Array]:
    """Weigh the domains of the text so that the domain with the least coverage has as much as possible.

    coverage_d = Σ of domain d's score mass on the kept experts / the same of d's own best plan of that size.
    The plan keeps the highest Σ_d λ_d s_d / M_d, M_d the mass of d's best plan. Weights λ of domains below
    the mean coverage rise, of the others fall; the weights with the largest smallest coverage are returned.
    Needs no forward besides the observing pass. Source: https://arxiv.org/abs/2609.04453

    Args:
        context: statistics with domains, budget, protected experts
        of: observed criterion whose scores are the mass; none may be negative
        patience: rounds without a gain until the search ends

    Returns:
        `score` [L, E], `weights` λ [D], `coverage` [D] of the plan that it makes.

    Raises:
        ExciseError: the text has one domain, or the criterion has negative scores.
    """
    if len(context.statistics.parts) < 2:
        raise ExciseError("max_min compares domains, and this text has one (`domain` of its sources)")
    mass = np.stack([_mass(context, of, part) for part in context.statistics.parts.values()])
    best = np.array([(own * _kept(context, own)).sum() for own in mass])
    if not best.all():
        names = context.statistics.domains
        raise ExciseError(f"max_min: no expert has a score in domain {names[int(best.argmin())]!r}")
    return _search(mass / best[:, None, None], lambda scores: _kept(context, scores), patience)


def _search(mass: Array, kept: Callable[[Array], Marks], patience: int) -> dict[str, Array]:
    """Multiplicative weights: the result of the round whose smallest coverage was largest.

    Args:
        mass: scores of every domain, 1 in all on its own best plan [D, L, E]
        kept: scores [L, E] -> the experts that their plan keeps
        patience: rounds without a gain until it ends
    """
    logs = np.zeros(len(mass))
    found: dict[str, Array] = {}
    since = 0
    while since <= patience:
        weights = np.exp(logs - logs.max())
        scores = np.tensordot(weights / weights.sum(), mass, axes=1)
        coverage = (mass * kept(scores)).sum(axis=(1, 2))
        since += 1
        if not found or coverage.min() > found["coverage"].min():
            found = {"score": scores, "weights": weights / weights.sum(), "coverage": coverage}
            since = 0
        logs += RATE / np.sqrt(1 + since) * (coverage.mean() - coverage)
    return found


def _mass(context: ExperimentContext, of: str, part: Statistics) -> Array:
    """The scores of one domain [L, E]; 0 where it has no data."""
    layers = context.shape.layers
    values = score(resolve(of), part, layers, context.protected, "", "").values
    if (values < 0).any():
        raise ExciseError(
            f"max_min: {of} has negative scores, which are no mass; take a sum, such as reap_sum"
        )
    return np.nan_to_num(values, nan=0.0)


def _kept(context: ExperimentContext, values: Array) -> Marks:
    """The experts that the plan of these scores keeps [L, E]."""
    budget, shape = context.budget, context.shape
    scores = Scores(values, context.protected, shape.layers, "max_min", "")
    marks = np.zeros(values.shape, dtype=bool)
    for row, ids in enumerate(plan_for(scores, budget, shape).kept.values()):
        marks[row, list(ids)] = True
    return marks
