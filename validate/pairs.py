"""Which criteria really differ? Paired tests between criteria at the same budget, on the same rows, not only against random plans."""

import itertools
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from criteria.statistics import Array
from validate.null import Evidence, Yardstick, number
from validate.statistics import Interval, Test, clustered_interval, clustered_p, corrected, mcnemar, resamples_for
from validate.verdict import ALPHA, Correction, differ


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Cost of `first` − cost of `second` (smaller cost = better), with its interval and two-sided p over documents or items.

    reason: why there is no p, else empty.
    """

    name: str
    scope: str
    fraction: float
    first: str
    second: str
    difference: float
    low: float
    high: float
    p: float
    test: str
    same_plan: bool
    reason: str


@dataclass(frozen=True, kw_only=True)
class Difference(Compared):
    """The same, judged among all pairs. differ: p_corrected ≤ α."""

    p_corrected: float
    differ: bool

    def to_json(self) -> dict[str, Any]:
        return {name: number(value) if isinstance(value, float) else value for name, value in asdict(self).items()}


def count(criteria: int, budgets: int) -> int:
    """How many differences there are by one yardstick."""
    return criteria * (criteria - 1) // 2 * budgets


def differences(evidence: list[Evidence], sticks: list[Yardstick], seed: int) -> list[Difference]:
    """Every pair of criteria at every budget, by every yardstick; Holm over all of one yardstick.

    Budgets are told apart by what they keep.
    """
    budgets: dict[tuple[str, int], list[Evidence]] = {}
    for one in evidence:
        budgets.setdefault((one.scope, one.plan.total), []).append(one)
    pairs = [pair for members in budgets.values() for pair in itertools.combinations(members, 2)]
    return _tested([((one.scope, round(one.plan.fraction, 6)), one, other) for one, other in pairs], sticks, seed)


def between_scopes(evidence: list[Evidence], sticks: list[Yardstick], seed: int) -> list[Difference]:
    """Scope global − scope layer of every criterion, where both keep the same number; Holm over all of one yardstick.

    Does it pay to let layers keep unequal numbers? scope of the result: "global − layer"; first and second: the criterion.
    """
    uniform = {(one.criterion, one.plan.total): one for one in evidence if one.scope == "layer"}
    pairs = [
        (("global − layer", round(one.plan.fraction, 6)), one, uniform[one.criterion, one.plan.total])
        for one in evidence
        if one.scope == "global" and (one.criterion, one.plan.total) in uniform
    ]
    return _tested(pairs, sticks, seed)


def _tested(pairs: list[tuple[tuple[str, float], Evidence, Evidence]], sticks: list[Yardstick], seed: int) -> list[Difference]:
    found = []
    for stick in sticks:
        tested = [_difference(stick, budget, first, second, len(pairs), seed) for budget, first, second in pairs]
        after = corrected([difference.p for difference in tested], Correction.HOLM)
        found += [Difference(**vars(one), p_corrected=float(p), differ=differ(float(p))) for one, p in zip(tested, after, strict=True)]
    return found


def _difference(stick: Yardstick, budget: tuple[str, float], first: Evidence, second: Evidence, family: int, seed: int) -> Compared:
    one, other = stick.values(first.plan), stick.values(second.plan)
    same = first.plan.digest == second.plan.digest
    if same:
        interval, tested = Interval(0.0, 0.0, 0), Test(np.nan, np.nan, len(one), "both keep the same experts")
    else:
        interval = clustered_interval(one - other, stick.weights, stick.clusters, seed)
        tested = mcnemar(one < 0, other < 0) if stick.binary else _sign_flip(stick, one - other, family, seed)
    return Compared(
        name=stick.name,
        scope=budget[0],
        fraction=budget[1],
        first=first.criterion,
        second=second.criterion,
        difference=stick.mean(one - other),
        low=interval.low,
        high=interval.high,
        p=tested.p,
        same_plan=same,
        test="exact McNemar over items" if stick.binary else "sign flips over documents",
        reason=tested.reason,
    )


def _sign_flip(stick: Yardstick, differences: Array, family: int, seed: int) -> Test:
    return clustered_p(differences, stick.weights, stick.clusters, seed, resamples_for(family, ALPHA))
