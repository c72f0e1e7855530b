"""Super experts: the few with outlier activations that every plan keeps."""

from typing import Literal

import numpy as np

from criteria.statistics import Statistics
from experts.arrays import Marks
from experts.shape import Shape

Protection = Literal["auto", True, False]
FEWEST = 200  # experts of a model from which one of them is at most 0.5 %


def protects(setting: Protection, experts: int) -> bool:
    """Return whether super experts are looked for.

    Above the 99.5th percentile are the ⌈(L·E − 1) / 200⌉ largest activations, whatever they are: a percentile
    is interpolated, so there always is one. Below FEWEST experts that one is more than the 0.5 % which the
    rule means, and `auto` leaves it alone.

    Args:
        setting: True, False, or auto
        experts: L·E
    """
    return experts >= FEWEST if setting == "auto" else bool(setting)


def super_experts(statistics: Statistics) -> Marks:
    """Mark the experts to protect [L, E].

    With a the largest activation of an expert: a > P99.5 of all a, and a > a_max / 10, and the layer is among
    the first 75 %. Source: https://arxiv.org/abs/2507.23279
    """
    a = statistics.peak
    early = np.arange(len(a))[:, None] < 0.75 * len(a)
    marks: Marks = (a > np.percentile(a, 99.5)) & (a > a.max() / 10) & early
    return marks


def protection_notes(setting: Protection, shape: Shape) -> list[str]:
    """Return what `auto` decided against, where it did."""
    if setting != "auto" or protects("auto", shape.total):
        return []
    decision = f"prune.protect_super_experts: auto protects none of {shape.total} experts"
    why = f"fewer than {FEWEST}: the rule would always take one, outlier or not"
    return [f"{decision} ({why}); true and false decide it"]
