"""The test of a plan by domain of the held-out text: a domain is a measure of its own, on its windows."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from validate.evidence import AnyChance, Cost
from validate.measure import Measure


def by_domain(measure: Measure) -> Iterator[Measure]:
    """Yield a measure for each domain: the same rows of the same plans, those of the domain alone.

    Nothing where a single domain has windows: it would say again what all windows say.

    Args:
        measure: by which plans were measured; its `rows` are all of the evaluator's
    """
    if measure.domain is None:
        return
    present = np.unique(measure.domain[measure.weights > 0])
    if len(present) < 2:
        return
    for number in present:
        rows = np.flatnonzero(measure.domain == number)
        yield replace(
            measure,
            name=measure.domains[number],
            rows=rows,
            weights=measure.weights[rows],
            clusters=measure.clusters[rows],
            domain=None,
        )


def worst_first(domains: Sequence[Cost[AnyChance]]) -> list[Cost[AnyChance]]:
    """Return the domains of a plan by what it costs there, the largest rise of the loss first."""
    return sorted(domains, key=lambda domain: -domain.delta)
