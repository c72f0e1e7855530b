"""How alike are two plans, beyond chance? Printed before any score: criteria that keep the same experts are one criterion."""

import numpy as np
from numpy.typing import NDArray

from experts.plan import Plan


def overlap(one: Plan, other: Plan) -> float:
    """Chance-corrected overlap: 1 = as alike as their counts allow, 0 = as random plans of these counts, below 0 = less than chance.

    (Σ_l |A_l ∩ B_l| − c) / (Σ_l min(|A_l|, |B_l|) − c), c = Σ_l |A_l|·|B_l| / E; with equal counts (|A∩B|/kept − kept share) / (1 − kept
    share) of METHODS 5. nan where every choice overlaps alike (a layer pruned to nothing, or not at all).
    """
    both = [(set(one.kept[layer]), set(other.kept[layer])) for layer in one.kept]
    shared = sum(len(a & b) for a, b in both)
    chance = sum(len(a) * len(b) for a, b in both) / one.num_experts
    most = sum(min(len(a), len(b)) for a, b in both)
    return (shared - chance) / (most - chance) if most > chance else float("nan")


def overlaps(plans: list[Plan]) -> NDArray[np.float64]:
    """Every plan with every other [n, n]; 1 on the diagonal."""
    return np.array([[overlap(one, other) for other in plans] for one in plans])


def stability(plans: list[Plan]) -> tuple[float, float]:
    """Mean and smallest overlap between plans of the same criterion from different calibration seeds; nan for fewer than two."""
    if len(plans) < 2:
        return float("nan"), float("nan")
    pairs = overlaps(plans)[np.triu_indices(len(plans), 1)]
    return float(pairs.mean()), float(pairs.min())
