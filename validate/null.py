"""The test of a plan against random plans (docs/methods.md, 5), by held-out loss and by items of tasks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from experts.anatomy import Anatomy
from experts.arrays import Array
from experts.plan import Plan
from validate.domains import by_domain, worst_first
from validate.evidence import Chance, Cost, Evidence, Judged
from validate.measure import Measure
from validate.rows import digest_of
from validate.statistics import (
    Correction,
    clustered_interval,
    clustered_p,
    corrected,
    mcnemar,
    normal_p,
    normality_p,
    permutation_p,
    random_plans_needed,
    smallest_detectable,
    standardized_effect,
)
from validate.verdict import ALPHA, Null, judge


@dataclass(frozen=True)
class Contest:
    """What is compared.

    Attributes:
        plan: what is tested
        reversed_plan: the plan of the reversed ranking under the same budget; None = not known
        randoms: random plans with the plan's own counts per layer
        formula: of the criterion, for reports
        scope: of the budget, for reports
        equal: random plans of the same total with equal counts, where the plan's differ: is choice and
            allocation together better than chance?
    """

    plan: Plan
    reversed_plan: Plan | None
    randoms: list[Plan]
    formula: str
    scope: str
    equal: list[Plan] | None = None


def evidence_of(
    contest: Contest,
    measures: Sequence[Measure],
    null: Null,
    seed: int,
    anatomy: Anatomy | None = None,
) -> Evidence[Chance]:
    """Measure a plan, its reverse and random plans. Verdicts come with `with_verdicts`.

    Args:
        contest: the plans
        measures: the held-out loss first
        null: how p is read from the random plans
        seed: of the bootstrap
        anatomy: the unpruned model, on which plans that have no rows yet are measured; None where all have
            some
    """
    costs = []
    for measure in measures:
        if anatomy is not None:
            measure_contests([contest], measure, anatomy)
        costs.append(_cost(contest, measure, null, seed))
    plan = contest.plan
    return Evidence(plan.criterion, contest.formula, plan, contest.reversed_plan, contest.scope, tuple(costs))


def measure_contests(contests: Sequence[Contest], measure: Measure, anatomy: Anatomy) -> None:
    """Measure every plan of several contests that has no rows yet, all in one sweep.

    Args:
        contests: what is compared
        measure: what plans are measured by
        anatomy: the unpruned model
    """
    plans = {digest_of(plan): plan for contest in contests for plan in _plans(contest, measure)}
    tested = list(dict.fromkeys(contest.plan.criterion for contest in contests))
    said = ", ".join(tested) if len(tested) <= 3 else f"plans of {len(tested)} criteria"
    measure.evaluator.measure_plans(list(plans.values()), anatomy, f"{measure.name}: {said}")


def _plans(contest: Contest, measure: Measure) -> list[Plan | None]:
    """The unpruned model, the plan, its reverse, and as many random plans as the measure takes."""
    tested = [contest.plan, contest.reversed_plan] if contest.reversed_plan else [contest.plan]
    return [None, *tested, *contest.randoms[: measure.randoms], *(contest.equal or [])[: measure.randoms]]


def _cost(contest: Contest, measure: Measure, null: Null, seed: int) -> Cost[Chance]:
    full, own = measure.values(None), measure.values(contest.plan)
    reverse = measure.values(contest.reversed_plan) if contest.reversed_plan else None
    return Cost(
        name=measure.name,
        metric=measure.metric,
        sign=measure.sign,
        full=measure.mean(full),
        delta=measure.mean(own - full),
        delta_interval=clustered_interval(own - full, measure.weights, measure.clusters, seed),
        p_full=_p_full(measure, own, full, seed),
        reversed_delta=math.nan if reverse is None else measure.mean(reverse - full),
        ends=None
        if reverse is None
        else clustered_interval(reverse - own, measure.weights, measure.clusters, seed),
        own=chance_of(own, contest.randoms, measure, null, seed),
        equal=None if contest.equal is None else chance_of(own, contest.equal, measure, null, seed),
        domains=tuple(_cost(contest, part, null, seed) for part in by_domain(measure)),
    )


def _p_full(measure: Measure, own: Array, full: Array, seed: int) -> float:
    if measure.binary:
        return mcnemar(own < 0, full < 0).p
    return clustered_p(own - full, measure.weights, measure.clusters, seed).p


def chance_of(own: Array, randoms: list[Plan], measure: Measure, null: Null, seed: int) -> Chance:
    """A plan against random plans, not judged yet. own: value of every row under the plan [N]."""
    randoms, full = randoms[: measure.randoms], measure.values(None)
    rows = np.stack([measure.values(random) for random in randoms])  # [R, N]
    costs = np.array([measure.mean(values - full) for values in rows])
    delta = measure.mean(own - full)
    probability = permutation_p if null is Null.COUNTED else normal_p
    return Chance(
        values=tuple(map(float, costs)),
        digests=tuple(map(digest_of, randoms)),
        p=probability(delta, costs),
        p_worse=probability(-delta, -costs),
        effect=standardized_effect(delta, costs),
        interval=clustered_interval(rows.mean(axis=0) - own, measure.weights, measure.clusters, seed),
        normality=normality_p(costs),
    )


def with_verdicts(
    evidence: Sequence[Evidence[Chance]], correction: Correction, null: Null
) -> list[Evidence[Judged]]:
    """Judge what was measured: corrected p, verdicts, and what could have been found.

    One family of tests per measure and null: all criteria and budgets in `evidence`. The domains of a plan
    are a family of their own, after Holm (DOMAIN_RULE).
    """
    by_measure = zip(*(one.costs for one in evidence), strict=True)
    judged = [_judged_costs(costs, correction, null) for costs in by_measure]
    return [
        Evidence(one.criterion, one.formula, one.plan, one.reversed_plan, one.scope, costs)
        for one, costs in zip(evidence, zip(*judged, strict=True), strict=True)
    ]


def _judged_costs(costs: Sequence[Cost[Chance]], correction: Correction, null: Null) -> list[Cost[Judged]]:
    """The costs of several plans by one measure."""
    own = _judge_family([cost.own for cost in costs], correction, null)
    equal = iter(_judge_family([cost.equal for cost in costs if cost.equal], correction, null))
    return [
        replace(  # type: ignore[misc]
            cost,
            own=chance,
            equal=next(equal) if cost.equal else None,
            domains=tuple(_judged_costs(worst_first(cost.domains), Correction.HOLM, null)),
        )
        for cost, chance in zip(costs, own, strict=True)
    ]


def _judge_family(chances: Sequence[Chance], correction: Correction, null: Null) -> list[Judged]:
    p = corrected([chance.p for chance in chances], correction)
    worse = corrected([chance.p_worse for chance in chances], correction)
    tests = 1 if correction is Correction.NONE else len(chances)
    return [
        with_verdict(chance, float(p[place]), float(worse[place]), tests, null)
        for place, chance in enumerate(chances)
    ]


def with_verdict(chance: Chance, p: float, p_worse: float, tests: int, null: Null) -> Judged:
    """A test with its verdict, and with what could have been found.

    Args:
        chance: what was measured
        p: corrected for `tests` of them
        p_worse: likewise
        tests: size of the family
        null: how p was read from the random plans
    """
    measured = {part.name: getattr(chance, part.name) for part in fields(Chance)}
    return Judged(
        **measured,
        smallest_detectable=_detectable(chance, tests, null),
        p_corrected=p,
        p_worse_corrected=p_worse,
        verdict=judge(p, p_worse, chance.interval.low, chance.interval.high),
    )


def _detectable(chance: Chance, tests: int, null: Null) -> float:
    """At α / tests, the level of the first step of Holm: the hardest one."""
    if null is Null.COUNTED and len(chance.values) < random_plans_needed(tests, ALPHA):
        return math.nan
    return smallest_detectable(np.array(chance.values), ALPHA / tests)
