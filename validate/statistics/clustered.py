"""Differences whose rows belong together: what is drawn, or has its sign flipped, is a whole document. scipy does the work."""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from validate.statistics.paired import Test, unfit
from validate.statistics.scale import exponent, scaled

Array = NDArray[np.float64]
LEVEL = 0.95
RESAMPLES = 9999
CANCELLED = 1e-12  # a sum this small beside its terms is their rounding


@dataclass(frozen=True)
class Interval:
    """A percentile bootstrap interval. clusters: number of documents resampled; reason: why low and high are nan, else empty."""

    low: float
    high: float
    clusters: int
    reason: str = ""


def clustered_interval(
    differences: Array, weights: Array, clusters: NDArray[np.int64], seed: int = 0
) -> Interval:
    """95 % interval of the weighted mean of `differences` [N] (weights: tokens of each row), resampling whole documents, not rows.

    Rows of one document are not independent. Percentile bootstrap by scipy.stats.bootstrap over per-document sums and weights.
    """
    return _interval(*_per_cluster(scaled(differences), weights, clusters), seed, exponent(differences))


def clustered_share(
    parts: Array, wholes: Array, weights: Array, clusters: NDArray[np.int64], seed: int = 0
) -> tuple[float, Interval]:
    """Σ w·parts / Σ w·wholes over rows [N], and its 95 % interval over documents: how much of a difference another one makes up.

    nan where the interval of the denominator holds 0: a share of nothing is no number.
    """
    whole = clustered_interval(wholes, weights, clusters, seed)
    if not (whole.low > 0 or whole.high < 0):
        reason = whole.reason or "what it is a share of is not told from 0"
        return float("nan"), Interval(float("nan"), float("nan"), whole.clusters, reason)
    above, below = (_per_cluster(scaled(values), weights, clusters)[0] for values in (parts, wholes))
    power = exponent(parts) - exponent(wholes)
    return float(np.ldexp(above.sum() / below.sum(), power)), _interval(above, below, seed, power)


def _interval(sums: Array, counts: Array, seed: int, power: int = 0) -> Interval:
    """Of 2^power · Σ sums / Σ counts over documents, which are drawn with replacement."""
    if len(sums) < 2:
        return Interval(
            float("nan"), float("nan"), len(sums), "one document only: an interval over documents needs two"
        )
    if not np.isfinite(sums).all():
        return Interval(float("nan"), float("nan"), len(sums), "a difference is not finite")

    def mean(total: Array, size: Array, axis: int = -1) -> Array:
        whole = size.sum(axis=axis)
        quotient: Array = np.divide(
            total.sum(axis=axis), whole, out=np.full_like(whole, np.nan), where=whole != 0
        )
        return quotient

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a nan: it is said in words below
        found = _bootstrap(sums, counts, mean, seed)
        ends = np.ldexp([found.low, found.high], power)
    if not np.isfinite(ends).all():
        return Interval(
            float("nan"), float("nan"), len(sums), "in some resamples there is nothing to take a share of"
        )
    return Interval(float(min(ends)), float(max(ends)), len(sums))  # equal ends may differ by rounding


def _bootstrap(sums: Array, counts: Array, mean: Any, seed: int) -> Any:
    return stats.bootstrap(
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


def clustered_p(
    differences: Array, weights: Array, clusters: NDArray[np.int64], seed: int = 0, resamples: int = RESAMPLES
) -> Test:
    """Two-sided permutation test that the weighted mean of `differences` [N] is 0: the signs of whole documents are flipped.

    All 2ⁿ sign patterns of n documents where there are at most `resamples`, else as many random ones (scipy.stats.permutation_test).
    """
    if reason := unfit(differences):
        return Test(np.nan, np.nan, len(differences), reason)
    sums = _per_cluster(scaled(differences), weights, clusters)[0]
    if len(sums) < 2:
        return Test(np.nan, np.nan, len(differences), "one document only: a test over documents needs two")

    def total(flipped: Array, axis: int = -1) -> Array:
        added: Array = flipped.sum(axis=axis)
        return added

    found = stats.permutation_test(
        (sums,),
        total,
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=1000,
        rng=np.random.default_rng(seed),
    )
    mean = np.ldexp(found.statistic / weights.sum(), exponent(differences))
    return Test(float(mean), float(found.pvalue), len(differences))


def resamples_for(tests: int, alpha: float) -> int:
    """Sign patterns enough for the smallest p, 2 / (n + 1), to stay ten times below α / tests."""
    return max(RESAMPLES, int(20 * tests / alpha))


def _per_cluster(differences: Array, weights: Array, clusters: NDArray[np.int64]) -> tuple[Array, Array]:
    """Weighted sums and weights of the documents that have any weight.

    What cancels but for rounding is 0: its sign means nothing.
    """
    weighted = differences * weights
    rows = (weighted, np.abs(weighted), weights)
    sums, sizes, counts = (np.bincount(clusters, values).astype(np.float64) for values in rows)
    sums[np.abs(sums) <= CANCELLED * sizes] = 0.0
    return sums[counts > 0], counts[counts > 0]
