"""Evidence -> verdict: every rule is here and nowhere else, and every report prints it."""

import math
from enum import StrEnum
from typing import Literal

Verdict = Literal["beats random", "not distinguishable", "worse than random"]

ALPHA = 0.05


class Null(StrEnum):
    """How a p against random plans comes about."""

    COUNTED = "counted"  # the share of random plans that do as well: exact, and never below 1 / (R + 1)
    NORMAL = "normal"  # a t distribution through their mean and spread: small p from few plans, if they are near normal


class Correction(StrEnum):
    """What is kept at α: the chance of any false positive (Bonferroni, Holm), or the expected share of them (Benjamini-Hochberg)."""

    NONE, BONFERRONI, HOLM, BENJAMINI_HOCHBERG = "none", "bonferroni", "holm", "benjamini-hochberg"


RULE = (
    "beats random: one-sided p ≤ 0.05 and the 95 % interval of (mean random − criterion) above 0; worse than random: the "
    "mirror image; not distinguishable: everything else. Two ends alike: the 95 % interval of (reversed − criterion) holds 0."
)
AUDIT_RULE = (
    "a cell (criterion, layer) passes when the paired t-test and the Wilcoxon signed rank test are both significant after Bonferroni "
    "(α = 0.05 / cells; for a control 0.05 / layers) and removing the high-ranked expert costs more than removing the low-ranked one."
)
PAIR_RULE = (
    "two criteria differ when the two-sided sign-flip permutation test over documents (of tasks: exact McNemar over items) is at most "
    "0.05 after Holm over all pairs and fractions."
)

LEAD_RULE = (
    "the lead over random survives recovery when the criterion's plan beats random plans before and after it: one-sided p ≤ 0.05 (a t "
    "distribution through the random plans) and the 95 % interval of (mean random − criterion) above 0, after the same training of all; "
    "reversed: worse than random after it; not shown: everything else. Without a lead before there is none to "
    "survive or to reverse."
)
Survival = Literal["survives", "not shown", "reversed", "no lead before"]


def survival(before: Verdict, after: Verdict) -> Survival:
    """Of a criterion's lead over random plans (LEAD_RULE)."""
    if before != "beats random":
        return "no lead before"
    if after == "worse than random":
        return "reversed"
    return "survives" if after == "beats random" else "not shown"


def cell_passes(p_t: float, p_wilcoxon: float, high: float, low: float) -> bool:
    """Of an audit (AUDIT_RULE). p_t, p_wilcoxon: corrected; high, low: mean outcomes. nan never passes."""
    return p_t <= ALPHA and p_wilcoxon <= ALPHA and high > low


def differ(p: float) -> bool:
    """Of two criteria (PAIR_RULE). p: corrected."""
    return p <= ALPHA


def marked_point(p: float | None, p_worse: float | None) -> str:
    """Of a curve of progressive removal: better (*) or worse (!) than random orders, at each point by itself. None: not compared."""
    return "*" if p is not None and p <= ALPHA else "!" if p_worse is not None and p_worse <= ALPHA else ""


def ends_alike(low: float, high: float) -> bool:
    """Do a criterion and its reverse cost the same? low, high: 95 % interval of the difference. Such a ranking carries no information."""
    return low <= 0 <= high


def judge(p: float, p_worse: float, low: float, high: float) -> Verdict:
    """p, p_worse: corrected p that chance does as well, as badly; low, high: interval of the advantage over the mean random plan.

    Without an interval (nan: a single document) nothing is claimed.
    """
    if math.isnan(low) or math.isnan(high):
        return "not distinguishable"
    if p <= ALPHA and low > 0:
        return "beats random"
    if p_worse <= ALPHA and high < 0:
        return "worse than random"
    return "not distinguishable"
