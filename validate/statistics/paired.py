"""Are paired differences 0? Two-sided tests of one sample of differences [N], and effect sizes.

scipy and statsmodels do the work. Input that cannot be tested gives nan and a reason, never an error.
"""

import math
import warnings
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats
from statsmodels.stats.contingency_tables import mcnemar as exact_mcnemar

from experts.arrays import Array, Marks
from validate.statistics.scale import constant, scaled

LEVEL = 0.95
FAR = 1e4  # |t| from which scipy is no better than the limit (1e-6), then slow, and by 1e5 wrong by 3 %


@dataclass(frozen=True)
class Test:
    """Result of a two-sided test.

    Attributes:
        statistic: t, W, b or a mean, as the test says
        p: two-sided p value
        n: pairs
        reason: why statistic and p are nan, else empty
    """

    __test__ = False  # not one of pytest's

    statistic: float
    p: float
    n: int
    reason: str = ""

    @classmethod
    def absent(cls, n: int, reason: str) -> "Test":
        """Return the result of a test that cannot be made."""
        return cls(math.nan, math.nan, n, reason)


@dataclass(frozen=True)
class Size:
    """Cohen's d of paired differences, with its 95 % interval.

    Attributes:
        d: mean / sd
        low: lower end of the interval of d
        high: upper end of the interval of d
        n: pairs
        ddof: what is subtracted from n in the variance of sd
        reason: why d or its interval is nan, else empty
    """

    d: float
    low: float
    high: float
    n: int
    ddof: int
    reason: str = ""


@dataclass(frozen=True)
class Association:
    """Mean rank correlation over rows.

    Attributes:
        rho: mean of Spearman's ρ over the rows that have one
        rows: how many rows have one
        reason: why rho is nan, else empty
    """

    rho: float
    rows: int
    reason: str = ""


def unfit(differences: Array) -> str:
    """Return why nothing can be said about these differences [N]; empty where something can."""
    if len(differences) < 2:
        return f"n = {len(differences)}: at least 2 pairs are needed"
    if wrong := int(np.count_nonzero(~np.isfinite(differences))):
        return f"{wrong} of {len(differences)} differences are not finite"
    return "" if np.any(differences) else "all differences are 0"


def without_spread(differences: Array) -> str:
    """Return the reason of `unfit`, or that all differences [N] are the same number; else empty.

    Without spread the standard deviation is 0, and any ratio with it a false certainty.
    """
    if reason := unfit(differences):
        return reason
    return "all differences are equal: they have no spread" if constant(differences) else ""


def paired_t(differences: Array) -> Test:
    """Return Student's t-test of differences [N] against 0 (scipy.stats.ttest_1samp).

    t = mean / (sd / √N), N − 1 degrees of freedom.
    """
    if reason := without_spread(differences):
        return Test.absent(len(differences), reason)
    with np.errstate(over="ignore"):  # scipy divides by their mean, which may be next to nothing
        result = stats.ttest_1samp(scaled(differences), 0.0)
    return Test(float(result.statistic), float(result.pvalue), len(differences))


def wilcoxon(differences: Array) -> Test:
    """Return the signed rank test of differences [N] (scipy.stats.wilcoxon with its defaults).

    Zeros are dropped before ranking.
    """
    if reason := unfit(differences):
        return Test.absent(len(differences), reason)
    result = stats.wilcoxon(differences)
    return Test(float(result.statistic), float(result.pvalue), len(differences))


def cohens_d(differences: Array, ddof: int = 1) -> Size:
    """Return d = mean / sd of differences [N], with its 95 % interval.

    The ends of the interval are the d of the noncentral t distributions that put the observed t at 2.5 and
    97.5 %.

    Args:
        differences: paired differences [N], in any unit
        ddof: subtracted from N in the variance; 1 = sample, 0 = population
    """
    n = len(differences)
    if reason := without_spread(differences):
        return Size(math.nan, math.nan, math.nan, n, ddof, reason)
    near_one = scaled(differences)
    mean, sd = float(near_one.mean()), float(near_one.std(ddof=1))
    from_ddof_1 = math.sqrt((n - ddof) / (n - 1))
    t = mean / sd * math.sqrt(n)
    low = _noncentrality(t, n - 1, (1 - LEVEL) / 2) / math.sqrt(n) * from_ddof_1
    high = _noncentrality(t, n - 1, (1 + LEVEL) / 2) / math.sqrt(n) * from_ddof_1
    known = np.isfinite([low, high]).all()
    reason = "" if known else "the interval cannot be computed for an effect this large"
    return Size(mean / sd * from_ddof_1, low, high, n, ddof, reason)


def _noncentrality(t: float, df: int, tail: float) -> float:
    """The noncentrality whose distribution exceeds t with probability `tail`."""
    if abs(t) > FAR:  # the normal part of t is nothing there: P(nc > t·√(χ²/df)) = tail
        return float(t * math.sqrt(stats.chi2.ppf(tail if t > 0 else 1 - tail, df) / df))
    reach = 10 * (1 + abs(t) / math.sqrt(2 * df))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # far out scipy's noncentral t warns, and returns nan
        try:
            root: float = optimize.brentq(lambda nc: stats.nct.sf(t, df, nc) - tail, t - reach, t + reach)
        except (ValueError, RuntimeError):
            return math.nan
    return root


def share_positive(differences: Array) -> float:
    """Return the share of differences [N] above 0; nan of none."""
    return float(np.mean(differences > 0)) if len(differences) else math.nan


def spearman_within(scores: Array, effects: Array) -> Association:
    """Return the mean over rows of Spearman's ρ between scores and effects: the order inside each active set.

    Args:
        scores: scores of the k active experts at N positions [N, k]. −inf is lowest; a row with nan has no ρ.
        effects: measured effects of the same experts [N, k]. A row that is not finite has no ρ.

    Returns:
        The mean over the rows that have a ρ; a row of equal scores or of equal effects has none.
    """
    if scores.shape[-1] < 2 or not len(scores):
        return Association(math.nan, 0, "an order needs at least two active experts at a position")
    usable = np.isfinite(effects).all(axis=1)
    for values in (scores, effects):
        usable &= (values != values[:, :1]).any(axis=1) & ~np.isnan(values).any(axis=1)
    if not usable.any():
        return Association(math.nan, 0, "scores or effects are all equal at every position")
    score_ranks, effect_ranks = _centred_ranks(scores[usable]), _centred_ranks(effects[usable])
    covariance = (score_ranks * effect_ranks).sum(axis=1)
    rho = covariance / np.sqrt((score_ranks**2).sum(axis=1) * (effect_ranks**2).sum(axis=1))
    return Association(float(rho.mean()), int(usable.sum()))


def _centred_ranks(values: Array) -> Array:
    """Ranks inside each row, minus their mean [N, k]."""
    ranks = stats.rankdata(values, axis=1)
    centred: Array = ranks - ranks.mean(axis=1, keepdims=True)
    return centred


def mcnemar(first: Marks, second: Marks) -> Test:
    """Return McNemar's exact test of the same N items answered twice (statsmodels, exact binomial).

    Among the items that are answered differently, is one side right more often than by a coin?

    Args:
        first: which items the first side got right [N]
        second: which items the second side got right [N]

    Returns:
        A test whose statistic is the number of items that only `first` got right.
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    if only_first + only_second == 0:
        return Test.absent(len(first), "no item is answered differently" if len(first) else "n = 0: no items")
    both, neither = int((first & second).sum()), int((~first & ~second).sum())
    result = exact_mcnemar([[both, only_first], [only_second, neither]], exact=True)
    return Test(float(only_first), float(result.pvalue), len(first))
