"""Which criteria really differ? Paired tests between criteria at the same budget, on the same rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from experts.arrays import Array
from validate.evidence import Chance, Evidence
from validate.measure import Measure
from validate.results import DifferenceJson
from validate.statistics import (
    Correction,
    Interval,
    Test,
    clustered_interval,
    clustered_p,
    corrected,
    mcnemar,
    number,
    resamples_for,
)
from validate.verdict import ALPHA, differ


@dataclass(frozen=True)
class Pair:
    """What is compared: two criteria at one budget.

    Attributes:
        scope: "layer", "global", or "global − layer" where scopes are compared
        fraction: share of all experts that is pruned
        first: A criterion's plan and what it costs
        second: the plan that it is compared with
    """

    scope: str
    fraction: float
    first: Evidence[Chance]
    second: Evidence[Chance]

    @property
    def same_plan(self) -> bool:
        return self.first.plan.digest == self.second.plan.digest


@dataclass(frozen=True)
class Compared:
    """A pair by one measure, tested and not judged yet. Smaller cost = better.

    Attributes:
        pair: what is compared
        name: of the measure
        difference: cost of `first` − cost of `second`: nats per token, or share of items
        interval: of the difference, over documents or items
        test: two-sided, that the difference is 0
        test_name: which test it is
    """

    pair: Pair
    name: str
    difference: float
    interval: Interval
    test: Test
    test_name: str


@dataclass(frozen=True)
class Difference:
    """The same, judged among all pairs of its measure.

    Attributes:
        compared: the pair and its test
        p_corrected: after Holm
        differ: whether p_corrected ≤ α
    """

    compared: Compared
    p_corrected: float
    differ: bool

    def to_json(self) -> DifferenceJson:
        compared, pair = self.compared, self.compared.pair
        return {
            "name": compared.name,
            "scope": pair.scope,
            "fraction": pair.fraction,
            "first": pair.first.criterion,
            "second": pair.second.criterion,
            "difference": compared.difference,
            "low": number(compared.interval.low),
            "high": number(compared.interval.high),
            "p": number(compared.test.p),
            "test": compared.test_name,
            "same_plan": pair.same_plan,
            "reason": compared.test.reason,
            "p_corrected": number(self.p_corrected),
            "differ": self.differ,
        }


def count(criteria: int, budgets: int) -> int:
    """Return how many pairs of criteria there are, over all budgets."""
    return criteria * (criteria - 1) // 2 * budgets


def differences(evidence: Sequence[Evidence[Chance]], measures: list[Measure], seed: int) -> list[Difference]:
    """Test every pair of criteria at every budget, by every measure; Holm over all pairs of one measure.

    Budgets are distinguished by scope and by how many experts they keep.
    """
    budgets: dict[tuple[str, int], list[Evidence[Chance]]] = {}
    for tested in evidence:
        budgets.setdefault((tested.scope, tested.plan.total), []).append(tested)
    pairs = []
    for members in budgets.values():
        for first, second in combinations(members, 2):
            pairs.append(Pair(first.scope, round(first.plan.fraction, 6), first, second))
    return _differences(pairs, measures, seed)


def between_scopes(
    evidence: Sequence[Evidence[Chance]], measures: list[Measure], seed: int
) -> list[Difference]:
    """Test scope global − scope layer of every criterion; Holm over all pairs of one measure.

    Does it pay to let layers keep unequal numbers? Only where both scopes keep the same total.
    """
    uniform = {
        (tested.criterion, tested.plan.total): tested for tested in evidence if tested.scope == "layer"
    }
    pairs = []
    for tested in evidence:
        partner = uniform.get((tested.criterion, tested.plan.total))
        if tested.scope == "global" and partner is not None:
            pairs.append(Pair("global − layer", round(tested.plan.fraction, 6), tested, partner))
    return _differences(pairs, measures, seed)


def _differences(pairs: Sequence[Pair], measures: list[Measure], seed: int) -> list[Difference]:
    judged = []
    for measure in measures:
        compared = [_compare(pair, measure, len(pairs), seed) for pair in pairs]
        p_corrected = corrected([result.test.p for result in compared], Correction.HOLM)
        for result, p in zip(compared, map(float, p_corrected), strict=True):
            judged.append(Difference(result, p_corrected=p, differ=differ(p)))
    return judged


def _compare(pair: Pair, measure: Measure, family: int, seed: int) -> Compared:
    first, second = measure.values(pair.first.plan), measure.values(pair.second.plan)  # [N] each
    if pair.same_plan:
        interval = Interval(0.0, 0.0, 0)
        test = Test.absent(len(first), "both keep the same experts")
    else:
        interval = clustered_interval(first - second, measure.weights, measure.clusters, seed)
        test = _test(measure, first, second, family, seed)
    return Compared(
        pair=pair,
        name=measure.name,
        difference=measure.mean(first - second),
        interval=interval,
        test=test,
        test_name="exact McNemar over items" if measure.binary else "sign flips over documents",
    )


def _test(measure: Measure, first: Array, second: Array, family: int, seed: int) -> Test:
    """Of right and wrong answers McNemar's, else sign flips enough for a family of so many tests."""
    if measure.binary:
        return mcnemar(first < 0, second < 0)
    resamples = resamples_for(family, ALPHA)
    return clustered_p(first - second, measure.weights, measure.clusters, seed, resamples)
