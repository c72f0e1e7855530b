"""Numbers brought to a size whose squares neither overflow nor vanish: a power of two changes no digit."""

import numpy as np

from experts.arrays import Array

SAFE = 300  # binary exponent up to which squares and their sums are exact: 1e-90 to 1e90
ROUNDING = 1e-6  # values that vary by less, relative to the largest, are one number: losses come from float32


def exponent(values: Array) -> int:
    """Return the exponent of the power of two by which `values` are divided to come near 1.

    0 where their size does no harm, and where a value is not finite.
    """
    most = float(np.abs(values).max(initial=0.0))
    binary = int(np.frexp(most)[1]) if np.isfinite(most) else 0
    return binary if abs(binary) > SAFE else 0


def scaled(values: Array) -> Array:
    """Return values · 2^(−`exponent`), for statistics that do not depend on the unit."""
    near_one: Array = np.ldexp(values, -exponent(values))
    return near_one


def constant(values: Array) -> bool:
    """Return whether these finite numbers are one number, apart from rounding."""
    near_one = scaled(values)
    return bool(np.ptp(near_one) <= ROUNDING * np.abs(near_one).max())
