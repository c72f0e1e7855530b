"""Evidence → verdict: every rule is here and nowhere else, and every report prints it.

Recipe schemas import this module at start-up, so it imports neither torch nor scipy.
"""

import math
from enum import StrEnum
from typing import Literal

Verdict = Literal["beats random", "not distinguishable", "worse than random"]
Survival = Literal["survives", "not shown", "reversed", "no lead before"]
Standing = Literal["ahead", "not shown", "behind", "worse"]

ALPHA = 0.05  # level of every test, after correction


class Null(StrEnum):
    """How a p against random plans comes about."""

    COUNTED = "counted"  # the share of random plans that do as well: exact, and never below 1 / (R + 1)
    NORMAL = "normal"  # a t distribution through their mean and spread: small p from few, near-normal plans


RULE = (
    "beats random: one-sided p ≤ 0.05 and the 95 % interval of (mean random − criterion) above 0; "
    "worse than random: the mirror image; not distinguishable: everything else. "
    "Two ends alike: the 95 % interval of (reversed − criterion) holds 0."
)
AUDIT_RULE = (
    "a cell (criterion, layer) passes when the paired t-test and the Wilcoxon signed rank test are both "
    "significant after Bonferroni (α = 0.05 / cells; for a control 0.05 / layers) "
    "and removing the high-ranked expert costs more than removing the low-ranked one."
)
DOMAIN_RULE = (
    "By domain the same rule holds on the windows of each domain, after Holm over the domains of a plan. "
    "The verdict over all windows stays the plan's; where it beats random, the domains in which it does not "
    "are named with it. The worst domain is the one with the largest rise of the loss."
)
PAIR_RULE = (
    "two criteria differ when the two-sided sign-flip permutation test over documents "
    "(of tasks: exact McNemar over items) is at most 0.05 after Holm over all pairs and fractions."
)
LEAD_RULE = (
    "the lead over random survives recovery when the criterion's plan beats random plans before and after "
    "it: one-sided p ≤ 0.05 (a t distribution through the random plans) and the 95 % interval of "
    "(mean random − criterion) above 0, after the same training of all; "
    "reversed: worse than random after it; not shown: everything else. "
    "Without a lead before there is none to survive or to reverse."
)


def judge(p: float, p_worse: float, low: float, high: float) -> Verdict:
    """Judge a plan against random plans (RULE).

    Args:
        p: one-sided p that chance does as well, corrected
        p_worse: one-sided p that chance does as badly, corrected
        low: lower end of the 95 % interval of (mean random cost − the plan's cost)
        high: upper end of it. Without an interval (nan: a single document) nothing is claimed.
    """
    if math.isnan(low) or math.isnan(high):
        return "not distinguishable"
    if p <= ALPHA and low > 0:
        return "beats random"
    if p_worse <= ALPHA and high < 0:
        return "worse than random"
    return "not distinguishable"


def standing(verdict: Verdict, delta: float, mean: float) -> Standing:
    """Judge how a plan stands against random plans in one domain of the text (DOMAIN_RULE).

    ahead: it beats them. worse: they beat it. Where neither is significant, behind: it costs more than they
    do on average; not shown: it costs less.

    Args:
        verdict: in this domain
        delta: what the plan costs there
        mean: what random plans cost there on average
    """
    if verdict == "beats random":
        return "ahead"
    if verdict == "worse than random":
        return "worse"
    return "behind" if delta > mean else "not shown"


def ends_alike(low: float, high: float) -> bool:
    """Return whether a criterion and its reverse cost the same: such a ranking carries no information.

    Args:
        low: lower end of the 95 % interval of (reversed cost − the criterion's cost)
        high: upper end of it
    """
    return low <= 0 <= high


def differ(p: float) -> bool:
    """Return whether two criteria differ (PAIR_RULE); p: corrected."""
    return p <= ALPHA


def cell_passes(p_t: float, p_wilcoxon: float, high: float, low: float) -> bool:
    """Return whether a cell of an audit passes (AUDIT_RULE).

    Args:
        p_t: of the paired t-test, corrected. nan never passes.
        p_wilcoxon: of the Wilcoxon test, corrected. nan never passes.
        high: mean outcome of removing the high-ranked expert
        low: mean outcome of removing the low-ranked expert
    """
    return p_t <= ALPHA and p_wilcoxon <= ALPHA and high > low


def survival(before: Verdict, after: Verdict) -> Survival:
    """Judge what recovery leaves of a criterion's lead over random plans (LEAD_RULE)."""
    if before != "beats random":
        return "no lead before"
    if after == "worse than random":
        return "reversed"
    return "survives" if after == "beats random" else "not shown"


def marked_point(p: float | None, p_worse: float | None) -> str:
    """Mark a point of a curve of progressive removal: better (*) or worse (!) than random orders, else empty.

    Each point is judged by itself, without correction. None: not compared with random orders.
    """
    if p is not None and p <= ALPHA:
        return "*"
    if p_worse is not None and p_worse <= ALPHA:
        return "!"
    return ""
