"""Which criteria really differ? Paired tests between criteria at the same budget, on the same rows, not only against random plans."""

import itertools
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from criteria.statistics import Array
from validate.null import Evidence, Measure, number
from validate.statistics import (
    Interval,
    Test,
    clustered_interval,
    clustered_p,
    corrected,
    mcnemar,
    resamples_for,
)
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
        return {
            name: number(value) if isinstance(value, float) else value for name, value in asdict(self).items()
        }


def count(criteria: int, budgets: int) -> int:
    """How many differences there are by one measure."""
    return criteria * (criteria - 1) // 2 * budgets


def differences(evidence: list[Evidence], measures: list[Measure], seed: int) -> list[Difference]:
    """Every pair of criteria at every budget, by every measure; Holm over all of one measure.

    Budgets are told apart by what they keep.
    """
    budgets: dict[tuple[str, int], list[Evidence]] = {}
    for one in evidence:
        budgets.setdefault((one.scope, one.plan.total), []).append(one)
    pairs = [pair for members in budgets.values() for pair in itertools.combinations(members, 2)]
    named = [((one.scope, round(one.plan.fraction, 6)), one, other) for one, other in pairs]
    return _tested(named, measures, seed)


def between_scopes(evidence: list[Evidence], measures: list[Measure], seed: int) -> list[Difference]:
    """Scope global − scope layer of every criterion, where both keep the same number; Holm over all of one measure.

    Does it pay to let layers keep unequal numbers? scope of the result: "global − layer"; first and second: the criterion.
    """
    uniform = {(one.criterion, one.plan.total): one for one in evidence if one.scope == "layer"}
    pairs = [
        (("global − layer", round(one.plan.fraction, 6)), one, uniform[one.criterion, one.plan.total])
        for one in evidence
        if one.scope == "global" and (one.criterion, one.plan.total) in uniform
    ]
    return _tested(pairs, measures, seed)


def _tested(
    pairs: list[tuple[tuple[str, float], Evidence, Evidence]], measures: list[Measure], seed: int
) -> list[Difference]:
    found = []
    for measure in measures:
        tested = [
            _difference(measure, budget, first, second, len(pairs), seed) for budget, first, second in pairs
        ]
        after = corrected([difference.p for difference in tested], Correction.HOLM)
        for one, p in zip(tested, map(float, after), strict=True):
            found.append(Difference(**vars(one), p_corrected=p, differ=differ(p)))
    return found


def _difference(
    measure: Measure, budget: tuple[str, float], first: Evidence, second: Evidence, family: int, seed: int
) -> Compared:
    one, other = measure.values(first.plan), measure.values(second.plan)
    same = first.plan.digest == second.plan.digest
    if same:
        interval, tested = Interval(0.0, 0.0, 0), Test(np.nan, np.nan, len(one), "both keep the same experts")
    else:
        interval = clustered_interval(one - other, measure.weights, measure.clusters, seed)
        tested = (
            mcnemar(one < 0, other < 0) if measure.binary else _sign_flip(measure, one - other, family, seed)
        )
    return Compared(
        name=measure.name,
        scope=budget[0],
        fraction=budget[1],
        first=first.criterion,
        second=second.criterion,
        difference=measure.mean(one - other),
        low=interval.low,
        high=interval.high,
        p=tested.p,
        same_plan=same,
        test="exact McNemar over items" if measure.binary else "sign flips over documents",
        reason=tested.reason,
    )


def _sign_flip(measure: Measure, differences: Array, family: int, seed: int) -> Test:
    return clustered_p(differences, measure.weights, measure.clusters, seed, resamples_for(family, ALPHA))
