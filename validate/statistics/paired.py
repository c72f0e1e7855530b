"""Are paired differences 0? Two-sided tests of one sample of differences, and their size. scipy and statsmodels do the work."""

import math
import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats
from statsmodels.stats.contingency_tables import mcnemar as exact_mcnemar

from validate.statistics.scale import constant, scaled

Array = NDArray[np.float64]
LEVEL = 0.95
FAR = 1e4  # |t| from which scipy is no better than the limit (1e-6), then slow, and by 1e5 wrong by 3 %


@dataclass(frozen=True)
class Test:
    """statistic: t, W or b; p: two-sided; n: pairs; reason: why statistic and p are nan, else empty."""

    __test__ = False  # not one of pytest's

    statistic: float
    p: float
    n: int
    reason: str = ""


@dataclass(frozen=True)
class Size:
    """Cohen's d of paired differences with its 95 % interval; ddof: of the standard deviation; reason: why it is nan, else empty."""

    d: float
    low: float
    high: float
    n: int
    ddof: int
    reason: str = ""


@dataclass(frozen=True)
class Association:
    """rho: mean rank correlation over the rows that have one; rows: how many have; reason: why it is nan, else empty."""

    rho: float
    rows: int
    reason: str = ""


def unfit(differences: Array) -> str:
    """Why nothing can be said of these differences; empty where something can."""
    if len(differences) < 2:
        return f"n = {len(differences)}: at least 2 pairs are needed"
    if wrong := int(np.count_nonzero(~np.isfinite(differences))):
        return f"{wrong} of {len(differences)} differences are not finite"
    return "" if np.any(differences) else "all differences are 0"


def without_spread(differences: Array) -> str:
    """`unfit`, or that all differences are the same number: their standard deviation is 0, and any ratio with it a false certainty."""
    if reason := unfit(differences):
        return reason
    return "all differences are equal: they have no spread" if constant(differences) else ""


def paired_t(differences: Array) -> Test:
    """Student's t = mean / (sd/√n), n − 1 degrees of freedom, of differences [N] (scipy.stats.ttest_1samp)."""
    if reason := without_spread(differences):
        return Test(np.nan, np.nan, len(differences), reason)
    with np.errstate(over="ignore"):  # scipy divides by their mean, which may be next to nothing
        found = stats.ttest_1samp(scaled(differences), 0.0)
    return Test(float(found.statistic), float(found.pvalue), len(differences))


def wilcoxon(differences: Array) -> Test:
    """Signed rank test; zeros are dropped before ranking (scipy.stats.wilcoxon with its defaults)."""
    if reason := unfit(differences):
        return Test(np.nan, np.nan, len(differences), reason)
    found = stats.wilcoxon(differences)
    return Test(float(found.statistic), float(found.pvalue), len(differences))


def cohens_d(differences: Array, ddof: int = 1) -> Size:
    """d = mean / sd (`ddof` subtracted from n in the variance). Interval: the noncentral t distributions that put t at 2.5 and 97.5 %."""
    n = len(differences)
    if reason := without_spread(differences):
        return Size(np.nan, np.nan, np.nan, n, ddof, reason)
    near = scaled(differences)
    mean, sd = float(near.mean()), float(near.std(ddof=1))
    scale = math.sqrt((n - ddof) / (n - 1))  # from ddof 1 to ddof
    t = mean / sd * math.sqrt(n)
    low, high = (
        _noncentrality(t, n - 1, tail) / math.sqrt(n) * scale for tail in ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
    )
    reason = (
        "" if np.isfinite([low, high]).all() else "the interval cannot be computed for an effect this large"
    )
    return Size(mean / sd * scale, low, high, n, ddof, reason)


def _noncentrality(t: float, df: int, tail: float) -> float:
    """The noncentrality whose distribution exceeds t with probability `tail`."""
    if abs(t) > FAR:  # the normal part of t is nothing there: P(nc > t·√(χ²/df)) = tail
        return float(t * math.sqrt(stats.chi2.ppf(tail if t > 0 else 1 - tail, df) / df))
    reach = 10 * (1 + abs(t) / math.sqrt(2 * df))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # far out scipy's noncentral t warns, and gives nan
        try:
            found: float = optimize.brentq(lambda nc: stats.nct.sf(t, df, nc) - tail, t - reach, t + reach)
        except (ValueError, RuntimeError):
            return float("nan")
    return found


def share_positive(differences: Array) -> float:
    """Share of differences above 0; nan of none."""
    return float(np.mean(differences > 0)) if len(differences) else float("nan")


def spearman_within(scores: Array, effects: Array) -> Association:
    """Mean over rows of Spearman's ρ between `scores` and `effects` [N, k]: the order inside each active set. Constant rows have none."""
    if scores.shape[-1] < 2 or not len(scores):
        return Association(np.nan, 0, "an order needs at least two active experts at a position")
    usable = np.isfinite(effects).all(axis=1)
    for values in (scores, effects):
        usable &= (values != values[:, :1]).any(axis=1) & ~np.isnan(values).any(axis=1)
    if not usable.any():
        return Association(np.nan, 0, "scores or effects are all equal at every position")
    ranks = [stats.rankdata(values[usable], axis=1) for values in (scores, effects)]
    one, other = (rank - rank.mean(axis=1, keepdims=True) for rank in ranks)
    rho = (one * other).sum(axis=1) / np.sqrt((one**2).sum(axis=1) * (other**2).sum(axis=1))
    return Association(float(rho.mean()), int(usable.sum()))


def mcnemar(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> Test:
    """Exact McNemar of the same items answered twice: of the items answered differently, is one side right more often than by a coin?

    one, other: right or wrong [N]. statistic: items that only `one` got right (statsmodels, exact binomial).
    """
    only_one, only_other = int((one & ~other).sum()), int((other & ~one).sum())
    if only_one + only_other == 0:
        return Test(
            np.nan, np.nan, len(one), "no item is answered differently" if len(one) else "n = 0: no items"
        )
    table = [[int((one & other).sum()), only_one], [only_other, int((~one & ~other).sum())]]
    return Test(float(only_one), float(exact_mcnemar(table, exact=True).pvalue), len(one))
