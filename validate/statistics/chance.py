"""One plan against random plans: how often, and by how much, does chance do as well? (docs/methods.md, 5)

`value` is what the plan costs and `null` [R] what the R random plans cost, in the same unit; smaller is
better.
"""

import math

import numpy as np
from scipy import stats

from experts.arrays import Array
from validate.statistics.scale import constant, exponent, scaled

TINY = 1e-15  # a range below which scipy's Shapiro-Wilk sees none


def permutation_p(value: float, null: Array) -> float:
    """Return how often chance does at least as well: p = (1 + #{null ≤ value}) / (R + 1), one-sided.

    Args:
        value: cost of the plan
        null: costs of random plans [R]

    Returns:
        p, or nan where a cost is not finite.
    """
    if not np.isfinite(value) or not np.isfinite(null).all():
        return math.nan  # a comparison with nan is never true, and would look like the best possible result
    return float((1 + np.count_nonzero(null <= value)) / (len(null) + 1))


def normal_p(value: float, null: Array) -> float:
    """Return the one-sided p that one more draw from the normal distribution behind `null` is ≤ value.

    t = (value − mean) / (sd·√(1 + 1/R)) with R − 1 degrees of freedom: the prediction interval of one draw.
    It reaches below 1 / (R + 1), at the price of an assumption (see `normality_p`).

    Args:
        value: cost of the plan
        null: costs of random plans [R]

    Returns:
        p, or nan where a cost is not finite or the null has no spread.
    """
    if not _comparable(value, null):
        return math.nan
    own, mean, sd = _near_one(value, null)
    t = (own - mean) / (sd * math.sqrt(1 + 1 / len(null)))
    return float(stats.t.cdf(t, len(null) - 1))


def normality_p(null: Array) -> float:
    """Return the Shapiro-Wilk p that `null` [R] came from a normal distribution.

    nan below three plans, or without spread.
    """
    if len(null) < 3 or not _varies(null):
        return math.nan
    near_one = scaled(null)
    if np.ptp(near_one) < TINY:
        near_one = near_one / np.ptp(near_one)
    return float(stats.shapiro(near_one).pvalue)


def standardized_effect(value: float, null: Array) -> float:
    """Return (mean null − value) / sd null (ddof 1): standard deviations by which the plan is better.

    nan where a cost is not finite or the null has no spread.
    """
    if not _comparable(value, null):
        return math.nan
    own, mean, sd = _near_one(value, null)
    return (mean - own) / sd


def _comparable(value: float, null: Array) -> bool:
    return bool(np.isfinite(value)) and _varies(null)


def _varies(null: Array) -> bool:
    """Whether a null has a spread that means something: beside rounding every difference looks certain."""
    return len(null) > 1 and bool(np.isfinite(null).all()) and not constant(null)


def _near_one(value: float, null: Array) -> tuple[float, float, float]:
    """The value, and mean and sd (ddof 1) of the null, all divided by the same power of two."""
    others = scaled(null)
    with np.errstate(over="ignore"):  # a value out of all proportion is infinitely far away
        own = float(np.ldexp(value, -exponent(null)))
    return own, float(np.mean(others)), float(np.std(others, ddof=1))
