"""Evidence -> verdict: one rule, printed in every report."""

import math
from typing import Literal

Verdict = Literal["beats random", "not distinguishable", "worse than random"]

ALPHA = 0.05
RULE = (
    "beats random: one-sided permutation p ≤ 0.05 and the 95 % interval of (mean random − criterion) above 0; worse than random: the "
    "mirror image; not distinguishable: everything else. Not corrected for the number of criteria."
)


def judge(p: float, p_worse: float, low: float, high: float) -> Verdict:
    """p, p_worse: permutation p that chance does as well, as badly; low, high: interval of the advantage over the mean random plan.

    Without an interval (nan: a single document) nothing is claimed.
    """
    if math.isnan(low) or math.isnan(high):
        return "not distinguishable"
    if p <= ALPHA and low > 0:
        return "beats random"
    if p_worse <= ALPHA and high < 0:
        return "worse than random"
    return "not distinguishable"
