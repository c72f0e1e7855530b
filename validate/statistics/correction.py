"""Many tests at once: adjusted p values (statsmodels.stats.multitest)."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from statsmodels.stats.multitest import multipletests

from validate.verdict import Correction

_NAMES = {
    Correction.BONFERRONI: "bonferroni",
    Correction.HOLM: "holm",
    Correction.BENJAMINI_HOCHBERG: "fdr_bh",
}


def corrected(p: Sequence[float], correction: Correction) -> NDArray[np.float64]:
    """Adjusted p values, to be compared with α itself. A nan stays nan and still counts as a test: it was asked, and showed nothing."""
    values = np.asarray(p, dtype=np.float64)
    if (
        correction is Correction.NONE or len(values) < 2
    ):  # a single p is its own; statsmodels collects garbage on every call
        return values
    missing = np.isnan(values)
    adjusted = multipletests(np.where(missing, 1.0, values), method=_NAMES[correction])[1]
    return np.where(missing, np.nan, adjusted)
