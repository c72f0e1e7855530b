"""Tests, intervals and detectable effects: the only place where uncertainty is computed. scipy does the work."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]
LEVEL = 0.95
POWER = 0.80
RESAMPLES = 9999


@dataclass(frozen=True)
class Interval:
    """A percentile bootstrap interval. clusters: number of documents resampled; reason: why low and high are nan, else empty."""

    low: float
    high: float
    clusters: int
    reason: str = ""


def permutation_p(value: float, null: Array) -> float:
    """One-sided p = (1 + #{null ≤ value}) / (R + 1): how often chance does at least as well (smaller is better). null: [R]."""
    if not np.isfinite(value) or not np.isfinite(null).all():
        return float("nan")  # a comparison with nan is never true, and would look like the best possible result
    return float((1 + np.count_nonzero(null <= value)) / (len(null) + 1))


def standardized_effect(value: float, null: Array) -> float:
    """(mean null − value) / sd null (ddof 1): positive = better than chance, in standard deviations. nan if the null has no spread."""
    sd = np.std(null, ddof=1) if len(null) > 1 else np.nan
    return float((np.mean(null) - value) / sd) if sd > 0 else float("nan")


def smallest_detectable(null: Array, alpha: float) -> float:
    """Difference to the mean null that a one-sided test at `alpha` finds with 80 % power, in the units of the null.

    (t_{1−α, R−1} · √(1 + 1/R) + z_{0.8}) · sd: the prediction interval of one more draw, and the quantile for the power.
    """
    r = len(null)
    if r < 2:
        return float("nan")
    reach = stats.t.ppf(1 - alpha, r - 1) * np.sqrt(1 + 1 / r) + stats.norm.ppf(POWER)
    return float(reach * np.std(null, ddof=1))


def clustered_interval(differences: Array, weights: Array, clusters: NDArray[np.int64], seed: int = 0) -> Interval:
    """95 % interval of the weighted mean of `differences` [N] (weights: tokens of each row), resampling whole documents, not rows.

    Rows of one document are not independent. Percentile bootstrap by scipy.stats.bootstrap over per-document sums and weights.
    """
    sums, counts = np.bincount(clusters, weights=differences * weights), np.bincount(clusters, weights=weights)
    sums, counts = sums[counts > 0], counts[counts > 0]
    if len(sums) < 2:
        return Interval(float("nan"), float("nan"), len(sums), "one document only: an interval over documents needs two")
    if not np.isfinite(sums).all():
        return Interval(float("nan"), float("nan"), len(sums), "a difference is not finite")

    def mean(total: Array, size: Array, axis: int = -1) -> Array:
        quotient: Array = total.sum(axis=axis) / size.sum(axis=axis)
        return quotient

    found = stats.bootstrap(
        (sums, counts),
        mean,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        confidence_level=LEVEL,
        method="percentile",
        batch=1000,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(float(found.low), float(found.high), len(sums))
