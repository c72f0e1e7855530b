"""One plan against random plans (METHODS 5): how often, and by how much, does chance do as well?"""

import math

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]


def permutation_p(value: float, null: Array) -> float:
    """One-sided p = (1 + #{null ≤ value}) / (R + 1): how often chance does at least as well (smaller is better). null: [R]."""
    if not np.isfinite(value) or not np.isfinite(null).all():
        return math.nan  # a comparison with nan is never true, and would look like the best possible result
    return float((1 + np.count_nonzero(null <= value)) / (len(null) + 1))


def normal_p(value: float, null: Array) -> float:
    """One-sided p that one more draw from the normal distribution the null came from is ≤ value.

    t = (value − mean) / (sd·√(1 + 1/R)) with R − 1 degrees of freedom, the prediction interval of one draw. Reaches below 1 / (R + 1),
    at the price of an assumption (`normality_p`).
    """
    if len(null) < 2 or not np.isfinite(value) or not np.isfinite(null).all() or np.ptp(null) == 0:
        return math.nan
    t = (value - null.mean()) / (null.std(ddof=1) * math.sqrt(1 + 1 / len(null)))
    return float(stats.t.cdf(t, len(null) - 1))


def normality_p(null: Array) -> float:
    """Shapiro-Wilk p that the null came from a normal distribution; nan below three plans or without spread."""
    if len(null) < 3 or not np.isfinite(null).all() or np.ptp(null) == 0:
        return math.nan
    return float(stats.shapiro(null).pvalue)


def standardized_effect(value: float, null: Array) -> float:
    """(mean null − value) / sd null (ddof 1): positive = better than chance, in standard deviations. nan if the null has no spread."""
    sd = np.std(null, ddof=1) if len(null) > 1 else np.nan
    return float((np.mean(null) - value) / sd) if sd > 0 else math.nan
