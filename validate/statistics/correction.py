"""Many tests at once: which error rate is kept at α, and the p values adjusted for it."""

from collections.abc import Sequence
from enum import StrEnum

import numpy as np
from statsmodels.stats.multitest import multipletests

from experts.arrays import Array


class Correction(StrEnum):
    """The error rate of a family of tests that is kept at α."""

    NONE = "none"  # each test keeps its own
    BONFERRONI = "bonferroni"  # the chance of any false positive
    HOLM = "holm"  # the same, step by step: never less powerful
    BENJAMINI_HOCHBERG = "benjamini-hochberg"  # the expected share of false positives among the positives


_STATSMODELS_NAMES = {
    Correction.BONFERRONI: "bonferroni",
    Correction.HOLM: "holm",
    Correction.BENJAMINI_HOCHBERG: "fdr_bh",
}


def corrected(p: Sequence[float], correction: Correction) -> Array:
    """Return adjusted p values, to be compared with α itself (statsmodels.stats.multitest).

    Args:
        p: one p value per test of the family. A nan stays nan and still counts as a test: it was asked, and
            showed nothing.
        correction: how to adjust

    Returns:
        Adjusted p values, in the order of `p`.
    """
    values = np.asarray(p, dtype=np.float64)
    # A single p is its own correction; statsmodels would run a garbage collection on every call.
    if correction is Correction.NONE or len(values) < 2:
        return values
    missing = np.isnan(values)
    adjusted = multipletests(np.where(missing, 1.0, values), method=_STATSMODELS_NAMES[correction])[1]
    return np.where(missing, np.nan, adjusted)
