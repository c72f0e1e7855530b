"""Does a cheap ranking agree with measured removals? Spearman per layer, over the experts of that layer."""

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from criteria.scores import Scores
from criteria.statistics import Array

REFERENCE = "causal_removal"


def spearman(values: Array, reference: Array) -> list[float]:
    """Rank correlation of every layer's experts, [L, E] and [L, E] -> [L]; nan where fewer than three have both or one side is constant."""
    found = []
    for one, other in zip(values, reference, strict=True):
        both = np.isfinite(one) & np.isfinite(other)
        ordered = both.sum() >= 3 and np.unique(one[both]).size > 1 and np.unique(other[both]).size > 1
        found.append(math.nan if not ordered else float(stats.spearmanr(one[both], other[both]).statistic))
    return found


def reference_of(table: Sequence[Scores]) -> Scores | None:
    """The measured removals among the scores, if any: `causal_removal` with whatever settings."""
    return next((scores for scores in table if scores.criterion.partition(":")[0] == REFERENCE), None)


def agreement(table: Sequence[Scores]) -> dict[str, list[float | None]]:
    """Spearman of every other criterion with the measured removals, per layer (None where there is none); empty without them."""
    reference = reference_of(table)
    if reference is None:
        return {}
    others = [scores for scores in table if scores is not reference]
    found = {scores.criterion: spearman(scores.values, reference.values) for scores in others}
    return {name: [None if math.isnan(rho) else rho for rho in layers] for name, layers in found.items()}
