"""Differences whose rows belong together: what is drawn, or has its sign flipped, is a whole document.

Rows of one document are not independent, so a test over rows would be too sure of itself. Throughout, N rows
have `weights` [N] (the tokens of each row) and `clusters` [N] (the number of each row's document). scipy does
the work.
"""

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from experts.arrays import Array, Ids
from validate.statistics.json_number import number
from validate.statistics.paired import LEVEL, Test, unfit
from validate.statistics.scale import exponent, scaled

Clusters = Ids
RESAMPLES = 9999
CANCELLED = 1e-12  # a sum this small beside its terms is their rounding


@dataclass(frozen=True)
class Interval:
    """A 95 % percentile bootstrap interval over documents.

    Attributes:
        low: lower end, in the unit of what was resampled
        high: upper end
        clusters: number of documents that were resampled
        reason: why low and high are nan, else empty
    """

    low: float
    high: float
    clusters: int
    reason: str = ""

    @classmethod
    def absent(cls, clusters: int, reason: str) -> "Interval":
        """Return the interval of something that has none."""
        return cls(math.nan, math.nan, clusters, reason)

    def to_json(self) -> list[float | None]:
        """Return [low, high], with None for nan."""
        return [number(self.low), number(self.high)]


def clustered_interval(differences: Array, weights: Array, clusters: Clusters, seed: int = 0) -> Interval:
    """Return the 95 % interval of the weighted mean of differences, resampling whole documents.

    Percentile bootstrap by scipy.stats.bootstrap over per-document sums and weights.

    Args:
        differences: one difference per row [N], in any unit
        weights: tokens of each row [N]
        clusters: document of each row [N]
        seed: of the resampling
    """
    sums, counts = _per_cluster(scaled(differences), weights, clusters)
    return _interval(sums, counts, seed, exponent(differences))


def clustered_share(
    parts: Array, wholes: Array, weights: Array, clusters: Clusters, seed: int = 0
) -> tuple[float, Interval]:
    """Return Σ w·parts / Σ w·wholes, and its 95 % interval over documents.

    How much of one difference another one makes up.

    Args:
        parts: numerator, one number per row [N]
        wholes: denominator, one number per row [N], in the same unit
        weights: tokens of each row [N]
        clusters: document of each row [N]
        seed: of the resampling

    Returns:
        Share and interval. Both are nan where the interval of the denominator holds 0: a share of nothing is
        no number.
    """
    whole = clustered_interval(wholes, weights, clusters, seed)
    if not (whole.low > 0 or whole.high < 0):
        reason = whole.reason or "what it is a share of does not differ significantly from 0"
        return math.nan, Interval.absent(whole.clusters, reason)
    numerators, _ = _per_cluster(scaled(parts), weights, clusters)
    denominators, _ = _per_cluster(scaled(wholes), weights, clusters)
    power = exponent(parts) - exponent(wholes)
    share = float(np.ldexp(numerators.sum() / denominators.sum(), power))
    return share, _interval(numerators, denominators, seed, power)


def _interval(sums: Array, counts: Array, seed: int, power: int) -> Interval:
    """Of 2^power · Σ sums / Σ counts over documents, which are drawn with replacement."""
    if len(sums) < 2:
        return Interval.absent(len(sums), "one document only: an interval over documents needs two")
    if not np.isfinite(sums).all():
        return Interval.absent(len(sums), "a difference is not finite")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a nan: it is said in words below
        bounds = _bootstrap(sums, counts, seed)
        ends = np.ldexp([bounds.low, bounds.high], power)
    if not np.isfinite(ends).all():
        return Interval.absent(len(sums), "in some resamples there is nothing to take a share of")
    return Interval(float(min(ends)), float(max(ends)), len(sums))  # equal ends may differ by rounding


def _bootstrap(sums: Array, counts: Array, seed: int) -> Any:
    return stats.bootstrap(
        (sums, counts),
        _quotient,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        confidence_level=LEVEL,
        method="percentile",
        batch=1000,
        rng=np.random.default_rng(seed),
    ).confidence_interval


def _quotient(sums: Array, counts: Array, axis: int = -1) -> Array:
    """Σ sums / Σ counts along `axis`; nan where the denominator is 0."""
    whole = counts.sum(axis=axis)
    nothing = np.full_like(whole, np.nan)
    quotient: Array = np.divide(sums.sum(axis=axis), whole, out=nothing, where=whole != 0)
    return quotient


def clustered_p(
    differences: Array, weights: Array, clusters: Clusters, seed: int = 0, resamples: int = RESAMPLES
) -> Test:
    """Return the two-sided permutation test that the weighted mean of differences is 0.

    The signs of whole documents are flipped: all 2ⁿ patterns of n documents where these are at most
    `resamples`, else as many random ones (scipy.stats.permutation_test).

    Args:
        differences: one difference per row [N], in any unit
        weights: tokens of each row [N]
        clusters: document of each row [N]
        seed: of the random patterns
        resamples: most patterns that are tried

    Returns:
        A test whose statistic is the weighted mean.
    """
    if reason := unfit(differences):
        return Test.absent(len(differences), reason)
    sums, _ = _per_cluster(scaled(differences), weights, clusters)
    if len(sums) < 2:
        return Test.absent(len(differences), "one document only: a test over documents needs two")
    result = stats.permutation_test(
        (sums,),
        _total,
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=1000,
        rng=np.random.default_rng(seed),
    )
    mean = np.ldexp(result.statistic / weights.sum(), exponent(differences))
    return Test(float(mean), float(result.pvalue), len(differences))


def _total(values: Array, axis: int = -1) -> Array:
    total: Array = values.sum(axis=axis)
    return total


def resamples_for(tests: int, alpha: float) -> int:
    """Return sign patterns enough for the smallest p, 2 / (n + 1), to stay ten times below α / tests."""
    return max(RESAMPLES, int(20 * tests / alpha))


def _per_cluster(differences: Array, weights: Array, clusters: Clusters) -> tuple[Array, Array]:
    """Weighted sums and weights [n] of the n documents that have any weight.

    A sum that cancels but for rounding is 0: its sign means nothing.
    """
    weighted = differences * weights
    sums = _sum_by(clusters, weighted)
    sizes = _sum_by(clusters, np.abs(weighted))
    counts = _sum_by(clusters, weights)
    sums[np.abs(sums) <= CANCELLED * sizes] = 0.0
    return sums[counts > 0], counts[counts > 0]


def _sum_by(clusters: Clusters, values: Array) -> Array:
    return np.bincount(clusters, values).astype(np.float64)
