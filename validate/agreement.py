"""Does a cheap ranking agree with measured removals? Spearman per layer, over the experts of that layer."""

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from criteria.scores import Scores
from experts.arrays import Array
from validate.statistics import number

REFERENCE = "causal_removal"


def spearman(values: Array, reference: Array) -> list[float]:
    """Return the rank correlation of every layer's experts.

    Args:
        values: scores [L, E]
        reference: scores to compare them with [L, E]

    Returns:
        ρ per layer [L]; nan where fewer than three experts have both scores, or one side is constant.
    """
    return [_spearman(own, other) for own, other in zip(values, reference, strict=True)]


def _spearman(values: Array, reference: Array) -> float:
    """Of one layer [E]."""
    both = np.isfinite(values) & np.isfinite(reference)
    values, reference = values[both], reference[both]
    if len(values) < 3 or np.unique(values).size < 2 or np.unique(reference).size < 2:
        return math.nan
    return float(stats.spearmanr(values, reference).statistic)


def reference_of(table: Sequence[Scores]) -> Scores | None:
    """Return the measured removals among the scores, `causal_removal` with any settings; None without."""
    for scores in table:
        if scores.criterion.partition(":")[0] == REFERENCE:
            return scores
    return None


def agreement(table: Sequence[Scores]) -> dict[str, list[float | None]]:
    """Return Spearman's ρ of every other criterion with the measured removals.

    Returns:
        ρ per layer by criterion, None where there is none; empty where no removals were measured.
    """
    reference = reference_of(table)
    if reference is None:
        return {}
    return {
        scores.criterion: [number(rho) for rho in spearman(scores.values, reference.values)]
        for scores in table
        if scores is not reference
    }
