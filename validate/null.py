"""Random plans, and the test of a criterion's plan against them (METHODS 5), by held-out loss and by the items of tasks alike."""

import math
from dataclasses import dataclass, field, fields, replace

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from criteria.statistics import Array
from experts.anatomy import Anatomy
from experts.plan import Plan
from validate.results import CostJson, EvidenceJson, JudgedJson, PlanCostJson, RandomPlansJson
from validate.rows import Evaluator, digest_of
from validate.statistics import (
    Correction,
    Interval,
    clustered_interval,
    clustered_p,
    corrected,
    mcnemar,
    normal_p,
    normality_p,
    number,
    permutation_p,
    random_plans_needed,
    smallest_detectable,
    standardized_effect,
)
from validate.verdict import ALPHA, Null, Verdict, ends_alike, judge

LOSS = "loss"


@dataclass(frozen=True)
class Contest:
    """What is compared: a criterion's plan, the plan of its reverse under the same budget, and random plans.

    randoms: with the plan's own counts per layer. equal: random plans of the same total with equal counts, where the plan's differ: is
    choice and allocation together better than chance?
    """

    plan: Plan
    reversed_plan: Plan
    randoms: list[Plan]
    formula: str
    scope: str
    equal: list[Plan] | None = None


@dataclass(frozen=True)
class Measure:
    """What plans are measured by. sign: +1 where smaller is better (loss), −1 for scores; rows: the part of the evaluator's rows.

    weights, clusters: of those rows; tokens and documents for losses, 1 and the item itself for tasks. randoms: how many random plans,
    None = all.
    """

    name: str
    metric: str
    evaluator: Evaluator
    weights: Array
    clusters: NDArray[np.int64]
    sign: int = 1
    rows: slice = field(default_factory=lambda: slice(None))
    randoms: int | None = None

    @property
    def binary(self) -> bool:
        """Are the items answered right or wrong? Then McNemar's test is exact."""
        return self.sign < 0 and bool(np.isin(self.values(None), (0.0, -1.0)).all())

    def values(self, plan: Plan | None) -> Array:
        """Value of every row [N], smaller = better."""
        return self.sign * self.evaluator.values(plan)[self.rows]

    def mean(self, values: Array) -> float:
        return float(np.average(values, weights=self.weights))


@dataclass(frozen=True)
class Chance:
    """A plan against random plans, not judged yet.

    cost = rise over the unpruned model: nats, or share of items lost; smaller is better.
    interval: of the advantage, mean random cost − the plan's; positive = better than chance. effect: in sd of the random plans.
    p, p_worse: one-sided, that chance does as well, as badly.
    """

    values: tuple[float, ...]
    digests: tuple[str, ...]
    p: float
    p_worse: float
    effect: float
    interval: Interval
    normality: float


@dataclass(frozen=True)
class Judged(Chance):
    """The same with its verdict, which takes the whole family of tests: only this has a place in a report.

    p_corrected, p_worse_corrected: over the family the report names. smallest_detectable: found with 80 % power at the
    level of that correction; nan where so few plans are counted that nothing could be found.
    """

    smallest_detectable: float
    p_corrected: float
    p_worse_corrected: float
    verdict: Verdict

    def to_json(self) -> JudgedJson:
        values = np.array(self.values)
        random: RandomPlansJson = {
            "values": list(self.values),
            "digests": list(self.digests),
            "mean": float(values.mean()),
            "sd": float(values.std(ddof=1)),
            "normality_p": number(self.normality),
        }
        return {
            "random": random,
            "p": number(self.p),
            "p_worse": number(self.p_worse),
            "p_corrected": number(self.p_corrected),
            "p_worse_corrected": number(self.p_worse_corrected),
            "effect": number(self.effect),
            "interval": self.interval.to_json(),
            "clusters": self.interval.clusters,
            "interval_note": self.interval.reason,
            "smallest_detectable": number(self.smallest_detectable),
            "verdict": self.verdict,
        }


@dataclass(frozen=True)
class Cost:
    """What a plan costs by one measure, against its nulls. full: value of the unpruned model; delta: mean rise of the plan over it.

    delta_interval: of delta, over documents or items; p_full: two-sided, that the plan is as good as the unpruned model (exact McNemar,
    or sign flips over documents); ends: interval of reversed − plan; equal: against random plans of equal counts, where the plan's differ.
    """

    name: str
    metric: str
    sign: int
    full: float
    delta: float
    delta_interval: Interval
    p_full: float
    reversed_delta: float
    ends: Interval
    own: Chance
    equal: Chance | None

    def to_json(self) -> CostJson:
        return {
            "name": self.name,
            "metric": self.metric,
            "full": self.sign * self.full,
            "value": self.sign * (self.full + self.delta),
            **self.against_nulls(),
        }

    def against_nulls(self) -> PlanCostJson:
        """What the plan costs, without the measure's name and plain values."""
        return {
            "delta": self.delta,
            "delta_interval": self.delta_interval.to_json(),
            "p_full": number(self.p_full),
            "reversed_delta": self.reversed_delta,
            "ends_interval": self.ends.to_json(),
            "ends_alike": ends_alike(self.ends.low, self.ends.high),
            **_settled(self.own).to_json(),
            "equal_counts": _settled(self.equal).to_json() if self.equal else None,
        }


@dataclass(frozen=True)
class Evidence:
    """A criterion's plan by every measure: the held-out loss first, then tasks."""

    criterion: str
    formula: str
    plan: Plan
    reversed_plan: Plan
    scope: str
    costs: tuple[Cost, ...]

    def to_json(self) -> EvidenceJson:
        """The loss at the top, tasks in a list."""
        loss, *tasks = self.costs
        return {
            "criterion": self.criterion,
            "formula": self.formula,
            "scope": self.scope,
            "fraction": round(self.plan.fraction, 6),
            "kept": self.plan.total,
            "of": self.plan.num_experts * len(self.plan.kept),
            "kept_per_layer": {str(layer): count for layer, count in self.plan.counts.items()},
            "digest": self.plan.digest,
            "reversed_digest": self.reversed_plan.digest,
            **loss.against_nulls(),
            "tasks": [cost.to_json() for cost in tasks],
        }


def _settled(chance: Chance) -> Judged:
    """What a report may show. Raises TypeError for a test that was never judged: it has no verdict."""
    if not isinstance(chance, Judged):
        raise TypeError("a test against random plans was not judged; see `with_verdicts`")
    return chance


def evidence_of(
    test: Contest, measures: list[Measure], null: Null, seed: int, anatomy: Anatomy | None = None
) -> Evidence:
    """Measures the plan, its reverse and the random plans by every measure. Verdicts come with `with_verdicts`.

    anatomy: the unpruned model, on which plans that have no rows yet are measured; None where all have some.
    """
    costs = []
    for measure in measures:
        if anatomy is not None:
            _measure_plans(test, measure, anatomy)
        costs.append(_cost(test, measure, null, seed))
    return Evidence(
        test.plan.criterion, test.formula, test.plan, test.reversed_plan, test.scope, tuple(costs)
    )


def _measure_plans(test: Contest, measure: Measure, anatomy: Anatomy) -> None:
    plans = [
        None,
        test.plan,
        test.reversed_plan,
        *test.randoms[: measure.randoms],
        *(test.equal or [])[: measure.randoms],
    ]
    title = f"{measure.name}: {test.plan.criterion}, scope {test.scope}"
    for plan in tqdm(plans, desc=title, unit="plan", delay=2):
        measure.evaluator.measure_plan(plan, anatomy)


def _cost(test: Contest, measure: Measure, null: Null, seed: int) -> Cost:
    full, own, reverse = (measure.values(plan) for plan in (None, test.plan, test.reversed_plan))
    return Cost(
        name=measure.name,
        metric=measure.metric,
        sign=measure.sign,
        full=measure.mean(full),
        delta=measure.mean(own - full),
        delta_interval=clustered_interval(own - full, measure.weights, measure.clusters, seed),
        p_full=_p_full(measure, own, full, seed),
        reversed_delta=measure.mean(reverse - full),
        ends=clustered_interval(reverse - own, measure.weights, measure.clusters, seed),
        own=chance_of(own, test.randoms, measure, null, seed),
        equal=None if test.equal is None else chance_of(own, test.equal, measure, null, seed),
    )


def _p_full(measure: Measure, own: Array, full: Array, seed: int) -> float:
    return (
        mcnemar(own < 0, full < 0)
        if measure.binary
        else clustered_p(own - full, measure.weights, measure.clusters, seed)
    ).p


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


def with_verdicts(evidence: list[Evidence], correction: Correction, null: Null) -> list[Evidence]:
    """The same with corrected p, verdicts, and what could have been found.

    One family per measure and null: all criteria and budgets in `evidence`.
    """
    found = evidence
    for measure in range(len(evidence[0].costs)):
        for name in ("own", "equal"):
            found = _family(found, measure, name, correction, null)
    return found


def _family(
    evidence: list[Evidence], measure: int, name: str, correction: Correction, null: Null
) -> list[Evidence]:
    members = [number for number, one in enumerate(evidence) if getattr(one.costs[measure], name) is not None]
    chances: list[Chance] = [getattr(evidence[member].costs[measure], name) for member in members]
    p, worse = (
        corrected(values, correction)
        for values in ([one.p for one in chances], [one.p_worse for one in chances])
    )
    found, tests = list(evidence), 1 if correction is Correction.NONE else len(members)
    for place, (member, chance) in enumerate(zip(members, chances, strict=True)):
        ruled = with_verdict(chance, float(p[place]), float(worse[place]), tests, null)
        costs = list(found[member].costs)
        costs[measure] = (
            replace(costs[measure], own=ruled) if name == "own" else replace(costs[measure], equal=ruled)
        )
        found[member] = replace(found[member], costs=tuple(costs))
    return found


def with_verdict(chance: Chance, p: float, p_worse: float, tests: int, null: Null) -> Judged:
    """The same with a (new) verdict, and with what could have been found. p, p_worse: corrected for `tests` of them."""
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
