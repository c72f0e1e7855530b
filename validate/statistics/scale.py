"""Numbers brought to a size whose squares neither overflow nor vanish: a power of two changes no digit."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
SAFE = 300  # binary exponent up to which squares and their sums are exact: 1e-90 to 1e90
ROUNDING = 1e-6  # values that vary by less, relative to the largest, are one number: losses come from float32


def exponent(values: Array) -> int:
    """The power of two that brings `values` near 1; 0 where their size does no harm, or one is not finite."""
    most = float(np.abs(values).max(initial=0.0))
    found = int(np.frexp(most)[1]) if np.isfinite(most) else 0
    return found if abs(found) > SAFE else 0


def scaled(values: Array) -> Array:
    """The same numbers near 1, for statistics that do not depend on the unit."""
    found: Array = np.ldexp(values, -exponent(values))
    return found


def constant(values: Array) -> bool:
    """Whether these finite numbers are one number, but for rounding."""
    near = scaled(values)
    return bool(np.ptp(near) <= ROUNDING * np.abs(near).max())
