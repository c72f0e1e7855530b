"""What a test could have found: a result that is not significant is printed with the effect it needs."""

import math
import warnings
from bisect import bisect_left

import numpy as np
from scipy import integrate, optimize, special, stats

from experts.arrays import Array
from validate.statistics.scale import exponent, scaled

POWER = 0.80
# Critical value beyond which scipy's noncentral t is wrong, or no number: two or three pairs at a tiny alpha.
FAR = 100.0
MOST = 10**9  # pairs beyond which no number helps: an effect that takes more of them is rounding


def smallest_detectable_d(n: int, alpha: float) -> float:
    """Return the smallest Cohen's d (ddof 1) that a two-sided paired t-test finds with 80 % power.

    Args:
        n: pairs
        alpha: level of the test

    Returns:
        d > 0; nan for fewer than two pairs.
    """
    if n < 2:
        return math.nan
    most = 1.0
    while _power(most, n, alpha) < POWER:
        most *= 2
    return float(optimize.brentq(lambda d: _power(d, n, alpha) - POWER, 0.0, most))


def needed_n(d: float, alpha: float) -> int | None:
    """Return the pairs that a two-sided paired t-test at `alpha` needs for 80 % power when the effect is d.

    None where 10⁹ pairs do not suffice, and where d is nan.
    """
    if not math.isfinite(d) or _power(abs(d), MOST, alpha) < POWER:
        return None
    most = 2
    while _power(abs(d), most, alpha) < POWER:
        most *= 2
    return bisect_left(range(most + 1), POWER, lo=2, key=lambda n: _power(abs(d), n, alpha))


def _power(d: float, n: int, alpha: float) -> float:
    """Chance that the test is significant when the effect is d > 0: both tails beyond the critical value."""
    critical = stats.t.ppf(1 - alpha / 2, n - 1)
    shift = d * math.sqrt(n)
    if critical > FAR:
        return _power_by_integral(critical, n - 1, shift)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # far out scipy's noncentral t warns, and returns nan
        near_tail = stats.nct.sf(critical, n - 1, shift)
        far_tail = stats.nct.cdf(-critical, n - 1, shift)
    if math.isnan(near_tail):
        return _power_by_integral(critical, n - 1, shift)
    # scipy returns nan (so does statsmodels' TTestPower) for some wrong-side tails that are 0 to 10 digits.
    return float(near_tail + (0.0 if math.isnan(far_tail) else far_tail))


def _power_by_integral(critical: float, df: int, shift: float) -> float:
    """The near tail where scipy's series fails: P(Z > c·√(χ²/df) − shift), over the quantiles of χ²."""

    def tail(quantile: float) -> float:
        chi_square = 2 * special.gammaincinv(df / 2, quantile)
        return float(special.ndtr(shift - critical * math.sqrt(chi_square / df)))

    return float(integrate.quad(tail, 0.0, 1.0, limit=200)[0])


def smallest_detectable(null: Array, alpha: float) -> float:
    """Return the advantage over the mean random plan that a one-sided test finds with 80 % power.

    (t_{1−α, R−1} · √(1 + 1/R) + z_{0.8}) · sd: the prediction interval of one more draw, and the quantile for
    the power.

    Args:
        null: costs of random plans [R]
        alpha: level of the test

    Returns:
        A difference in the unit of `null`; nan below two plans, or where a cost is not finite.
    """
    r = len(null)
    if r < 2 or not np.isfinite(null).all():
        return math.nan
    reach = stats.t.ppf(1 - alpha, r - 1) * np.sqrt(1 + 1 / r) + stats.norm.ppf(POWER)
    with np.errstate(over="ignore"):
        return float(np.ldexp(reach * np.std(scaled(null), ddof=1), exponent(null)))


def random_plans_needed(tests: int, alpha: float) -> int:
    """Return how many random plans R a family of tests needs for any of them to be able to pass.

    The smallest p, 1 / (R + 1), times `tests` must be ≤ α.
    """
    return math.ceil(tests / alpha - 1e-9) - 1


def documents_needed(tests: int, alpha: float) -> int:
    """Return how many documents n a family of sign-flip tests needs for any of them to be able to pass.

    The smallest two-sided p, 2 / 2ⁿ, times `tests` must be ≤ α.
    """
    return math.ceil(math.log2(2 * tests / alpha) - 1e-9)
