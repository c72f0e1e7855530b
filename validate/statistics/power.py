"""What a test could have found: beside every result that is not significant stands the effect it would have needed."""

import math
import warnings
from bisect import bisect_left

import numpy as np
from numpy.typing import NDArray
from scipy import integrate, optimize, special, stats

from validate.statistics.scale import exponent, scaled

POWER = 0.80
# Critical value beyond which scipy's noncentral t is wrong, or no number: two or three pairs at a tiny alpha.
FAR = 100.0
MOST = 10**9  # pairs beyond which no number helps: an effect that takes more of them is rounding


def smallest_detectable_d(n: int, alpha: float) -> float:
    """Smallest Cohen's d (ddof 1) that a two-sided paired t-test of n pairs finds with 80 % power at `alpha`; nan for n < 2."""
    if n < 2:
        return math.nan
    most = 1.0
    while _power(most, n, alpha) < POWER:
        most *= 2
    return float(optimize.brentq(lambda d: _power(d, n, alpha) - POWER, 0.0, most))


def needed_n(d: float, alpha: float) -> int | None:
    """Pairs for 80 % power at `alpha` when the effect is d; None where 10⁹ do not suffice, or d is nan."""
    if not math.isfinite(d) or _power(abs(d), MOST, alpha) < POWER:
        return None
    most = 2
    while _power(abs(d), most, alpha) < POWER:
        most *= 2
    return bisect_left(range(most + 1), POWER, lo=2, key=lambda n: _power(abs(d), n, alpha))


def _power(d: float, n: int, alpha: float) -> float:
    """Chance that the test is significant when the effect is d > 0: both tails of the noncentral t beyond the critical value."""
    critical, shift = stats.t.ppf(1 - alpha / 2, n - 1), d * math.sqrt(n)
    if critical > FAR:
        return _power_by_integral(critical, n - 1, shift)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # far out scipy's noncentral t warns, and gives nan
        near, far = stats.nct.sf(critical, n - 1, shift), stats.nct.cdf(-critical, n - 1, shift)
    if math.isnan(near):
        return _power_by_integral(critical, n - 1, shift)
    # scipy gives nan (statsmodels' TTestPower then too) for some wrong-side tails that are 0 to 10 digits.
    return float(near + (0.0 if math.isnan(far) else far))


def _power_by_integral(critical: float, df: int, shift: float) -> float:
    """The near tail where scipy's series fails: P(Z > c·√(χ²/df) − shift), over the quantiles of χ²."""

    def tail(u: float) -> float:
        return float(special.ndtr(shift - critical * math.sqrt(2 * special.gammaincinv(df / 2, u) / df)))

    return float(integrate.quad(tail, 0.0, 1.0, limit=200)[0])


def smallest_detectable(null: NDArray[np.float64], alpha: float) -> float:
    """Difference to the mean null that a one-sided test at `alpha` finds with 80 % power, in the units of the null.

    (t_{1−α, R−1} · √(1 + 1/R) + z_{0.8}) · sd: the prediction interval of one more draw, and the quantile for the power.
    """
    r = len(null)
    if r < 2 or not np.isfinite(null).all():
        return math.nan
    reach = stats.t.ppf(1 - alpha, r - 1) * np.sqrt(1 + 1 / r) + stats.norm.ppf(POWER)
    with np.errstate(over="ignore"):
        return float(np.ldexp(reach * np.std(scaled(null), ddof=1), exponent(null)))


def random_plans_needed(tests: int, alpha: float) -> int:
    """Random plans R without which none of so many tests can pass: the smallest p, 1 / (R + 1), times `tests` must be ≤ α."""
    return math.ceil(tests / alpha - 1e-9) - 1


def documents_needed(tests: int, alpha: float) -> int:
    """Documents without which none of so many sign-flip tests can pass: the smallest two-sided p is 2 / 2ⁿ."""
    return math.ceil(math.log2(2 * tests / alpha) - 1e-9)
