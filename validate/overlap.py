"""How alike are two plans, beyond chance? Criteria that keep the same experts are one criterion."""

import math

import numpy as np

from experts.arrays import Array
from experts.plan import Plan


def overlap(first: Plan, second: Plan) -> float:
    """Return the chance-corrected overlap of two plans of one model (docs/methods.md, 7).

    (Σ_l |A_l ∩ B_l| − c) / (Σ_l min(|A_l|, |B_l|) − c), c = Σ_l |A_l|·|B_l| / E, where A_l and B_l are the
    experts that the plans keep of layer l. With equal counts this is (|A∩B| / kept − share kept) / (1 − share
    kept).

    Returns:
        1 = as alike as their counts allow, 0 = as random plans of these counts, below 0 = less alike than
        those; nan where every choice overlaps alike (nothing is pruned).
    """
    kept = [(set(first.kept[layer]), set(second.kept[layer])) for layer in first.kept]
    shared = sum(len(a & b) for a, b in kept)
    chance = sum(len(a) * len(b) for a, b in kept) / first.num_experts
    most = sum(min(len(a), len(b)) for a, b in kept)
    return (shared - chance) / (most - chance) if most > chance else math.nan


def overlaps(plans: list[Plan]) -> Array:
    """Return the overlap of every plan with every other [n, n]; 1 on the diagonal."""
    return np.array([[overlap(first, second) for second in plans] for first in plans])


def stability(plans: list[Plan]) -> tuple[float, float]:
    """Return mean and smallest overlap between plans of one criterion from different calibration seeds.

    nan for fewer than two plans.
    """
    if len(plans) < 2:
        return math.nan, math.nan
    pairs = overlaps(plans)[np.triu_indices(len(plans), 1)]
    return float(pairs.mean()), float(pairs.min())
