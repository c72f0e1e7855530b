"""What is found out about a plan: its costs, against random plans, before and after the verdict."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from experts.plan import Plan
from validate.conclusion import conclusion
from validate.results import CostJson, EvidenceJson, JudgedJson, PlanCostJson, RandomPlansJson
from validate.statistics import Interval, number
from validate.verdict import Verdict, ends_alike


@dataclass(frozen=True)
class Chance:
    """A plan against R random plans, not judged yet.

    A cost is a rise over the unpruned model: nats per token, or the share of items lost; smaller is better.

    Attributes:
        values: cost of every random plan [R]
        digests: which plans they are [R]
        p: one-sided, that chance does as well
        p_worse: one-sided, that chance does as badly
        effect: advantage over the mean random plan, in standard deviations of the random plans
        interval: of the advantage, mean random cost − the plan's; positive = better than chance
        normality: Shapiro-Wilk p that the values are normal
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

    Attributes:
        smallest_detectable: advantage found with 80 % power at the level of the correction; nan where so few
            plans are counted that nothing could be found
        p_corrected: p over the family that the report names
        p_worse_corrected: p_worse over the same family
        verdict: beats random, not distinguishable, worse than random
    """

    smallest_detectable: float
    p_corrected: float
    p_worse_corrected: float
    verdict: Verdict

    def to_json(self) -> JudgedJson:
        """The keys of `JudgedJson`; nan becomes None."""
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


AnyChance = TypeVar("AnyChance", bound=Chance, covariant=True)


@dataclass(frozen=True)
class Cost(Generic[AnyChance]):
    """What a plan costs by one measure, against its nulls.

    Attributes:
        name: loss, or the task; of a part of the text, its domain
        metric: unit of the value
        sign: +1 where smaller is better, −1 for scores
        full: value of the unpruned model, times sign
        delta: mean rise of the plan over it
        delta_interval: of delta, over documents or items
        p_full: two-sided, that the plan is as good as the unpruned model (exact McNemar, or sign flips over
            documents)
        reversed_delta: delta of the reverse plan; nan where there is none
        ends: interval of reverse − plan; None where there is no reverse
        own: against random plans with the plan's own counts
        equal: against random plans of equal counts, where the plan's differ
        domains: the same on the windows of each domain, worst first; empty where there is one alone
    """

    name: str
    metric: str
    sign: int
    full: float
    delta: float
    delta_interval: Interval
    p_full: float
    reversed_delta: float
    ends: Interval | None
    own: AnyChance
    equal: AnyChance | None
    domains: "tuple[Cost[AnyChance], ...]" = ()

    def to_json(self: "Cost[Judged]") -> CostJson:
        """The keys of `CostJson`."""
        return {
            "name": self.name,
            "metric": self.metric,
            "full": self.sign * self.full,
            "value": self.sign * (self.full + self.delta),
            **self.against_nulls(),
        }

    def against_nulls(self: "Cost[Judged]") -> PlanCostJson:
        """What the plan costs, without the measure's name and plain values."""
        return {
            "delta": self.delta,
            "delta_interval": self.delta_interval.to_json(),
            "p_full": number(self.p_full),
            "reversed_delta": number(self.reversed_delta),
            "ends_interval": self.ends.to_json() if self.ends else [None, None],
            "ends_alike": bool(self.ends and ends_alike(self.ends.low, self.ends.high)),
            **_judged(self.own).to_json(),
            "equal_counts": _judged(self.equal).to_json() if self.equal else None,
        }


@dataclass(frozen=True)
class Evidence(Generic[AnyChance]):
    """A plan by every measure: the held-out loss first, then tasks. `Evidence[Judged]` has a verdict.

    Attributes:
        criterion: what ranked the experts
        formula: of the criterion
        plan: what was tested
        reversed_plan: the plan of the reversed ranking; None = not known
        scope: of the budget
        costs: one per measure
    """

    criterion: str
    formula: str
    plan: Plan
    reversed_plan: Plan | None
    scope: str
    costs: tuple[Cost[AnyChance], ...]

    @property
    def delta(self) -> float:
        """Rise of the held-out loss over the unpruned model, nats per token."""
        return self.costs[0].delta

    @property
    def p(self) -> float:
        """One-sided, that a random plan does as well by the held-out loss; not corrected."""
        return self.costs[0].own.p

    @property
    def interval(self) -> Interval:
        """Of the advantage over the mean random plan, nats per token; positive = better than chance."""
        return self.costs[0].own.interval

    @property
    def verdict(self: "Evidence[Judged]") -> Verdict:
        """By the held-out loss: beats random, not distinguishable, worse than random."""
        return self.costs[0].own.verdict

    @property
    def domains(self) -> tuple[Cost[AnyChance], ...]:
        """What the plan costs on the held-out windows of each domain, worst first; empty with one domain.

        Every cost has the name of its domain; p and verdict are after Holm over the domains.
        """
        return self.costs[0].domains

    @property
    def conclusion(self: "Evidence[Judged]") -> str:
        """The verdict in a sentence that names the worst domain, and those where the plan does not beat
        random plans.
        """
        loss = self.costs[0]
        return conclusion(self.criterion, loss.against_nulls(), _each(loss.domains))

    def to_json(self: "Evidence[Judged]") -> EvidenceJson:
        """The loss at the top, domains and tasks in lists."""
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
            "reversed_digest": self.reversed_plan.digest if self.reversed_plan else None,
            **loss.against_nulls(),
            "conclusion": self.conclusion,
            "domains": _each(loss.domains),
            "tasks": _each(tasks),
            "refit": None,
        }


def _each(costs: Sequence[Cost[Judged]]) -> list[CostJson]:
    return [cost.to_json() for cost in costs]


def _judged(chance: Chance) -> Judged:
    """Refuse at run time what the types refuse: a report on a test without a verdict."""
    if not isinstance(chance, Judged):
        raise TypeError("a test against random plans was not judged; see `with_verdicts`")
    return chance
