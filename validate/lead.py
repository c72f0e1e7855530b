"""Does the criterion's lead over random plans survive recovery? The same rows, before and after it."""

from dataclasses import dataclass

import numpy as np

from experts.arrays import Array
from experts.plan import Plan
from validate.evidence import Judged
from validate.measure import Measure
from validate.null import chance_of, with_verdict
from validate.results import LeadJson, RecoveredCostJson
from validate.statistics import Interval, clustered_interval, clustered_share, number
from validate.verdict import Null, Survival, survival


@dataclass(frozen=True)
class RecoveredCost:
    """What recovery did to one plan by one measure. Costs: nats per token, or share of items lost.

    Attributes:
        name: of the measure
        metric: of the measure
        before: cost over the unpruned model before recovery
        after: cost over the unpruned model after recovery
        gain: interval of before − after, over documents or items
        share: share of the cost that recovery took back; nan where there was none
        share_interval: of the share, over documents or items
    """

    name: str
    metric: str
    before: float
    after: float
    gain: Interval
    share: float
    share_interval: Interval

    def to_json(self) -> RecoveredCostJson:
        return {
            "name": self.name,
            "metric": self.metric,
            "before": self.before,
            "after": self.after,
            "gain": self.before - self.after,
            "gain_interval": self.gain.to_json(),
            "share": number(self.share),
            "share_interval": self.share_interval.to_json(),
            "share_note": self.share_interval.reason,
        }


@dataclass(frozen=True)
class Lead:
    """Mean cost of the recovered random plans − the criterion's cost, before and after recovery.

    Attributes:
        name: of the measure
        metric: of the measure
        before: the criterion's plan, judged against all random plans that were measured before recovery
        after: the criterion's plan, judged against the recovered random plans
        lead_before: lead over the recovered random plans before recovery: nats per token, or share of items
        interval_before: of lead_before, over documents or items
        lead_after: the same lead after recovery
        interval_after: of lead_after, over documents or items
        kept_share: lead_after / lead_before; nan without a lead before
        kept_interval: of that share, over documents or items
    """

    name: str
    metric: str
    before: Judged
    after: Judged
    lead_before: float
    interval_before: Interval
    lead_after: float
    interval_after: Interval
    kept_share: float
    kept_interval: Interval

    @property
    def verdict(self) -> Survival:
        return survival(self.before.verdict, self.after.verdict)

    def to_json(self) -> LeadJson:
        return {
            "name": self.name,
            "metric": self.metric,
            "verdict": self.verdict,
            "lead_before": self.lead_before,
            "interval_before": self.interval_before.to_json(),
            "lead_after": self.lead_after,
            "interval_after": self.interval_after.to_json(),
            "kept": number(self.kept_share),
            "kept_interval": self.kept_interval.to_json(),
            "kept_note": self.kept_interval.reason,
            "before": self.before.to_json(),
            "after": self.after.to_json(),
        }


def recovery_of(plan: Plan | None, before: Measure, after: Measure, seed: int) -> RecoveredCost:
    """Compare one plan before and after recovery, by one measure.

    Args:
        plan: the plan; None = the unpruned model, which has nothing to recover
        before: the measure, with the rows of before recovery
        after: the same measure, with the rows of after recovery
        seed: of the intervals
    """
    full, old, new = before.values(None), before.values(plan), after.values(plan)  # [N] each
    gain = clustered_interval(old - new, before.weights, before.clusters, seed)
    share, share_interval = clustered_share(old - new, old - full, before.weights, before.clusters, seed)
    return RecoveredCost(
        name=before.name,
        metric=before.metric,
        before=before.mean(old - full),
        after=before.mean(new - full),
        gain=gain,
        share=share,
        share_interval=share_interval,
    )


def lead_of(
    plan: Plan, randoms: list[Plan], known: list[Plan], before: Measure, after: Measure, seed: int
) -> Lead:
    """Compare the criterion's plan with random plans that got the same recovery, by one measure.

    p comes from a t distribution through the random plans: counting would need 19 of them for p ≤ 0.05.

    Args:
        plan: the criterion's plan
        randoms: random plans that were recovered
        known: random plans that were measured before recovery, `randoms` first: the more of them, the better
            the test whether there was a lead
        before: the measure, with the rows of before recovery
        after: the same measure, with the rows of after recovery
        seed: of the intervals
    """
    old = _mean_random(before, randoms) - before.values(plan)  # [N]
    new = _mean_random(after, randoms) - after.values(plan)  # [N]
    kept_share, kept_interval = clustered_share(new, old, before.weights, before.clusters, seed)
    return Lead(
        name=before.name,
        metric=before.metric,
        before=_judge(plan, known, before, seed),
        after=_judge(plan, randoms, after, seed),
        lead_before=before.mean(old),
        interval_before=clustered_interval(old, before.weights, before.clusters, seed),
        lead_after=before.mean(new),
        interval_after=clustered_interval(new, before.weights, before.clusters, seed),
        kept_share=kept_share,
        kept_interval=kept_interval,
    )


def _judge(plan: Plan, randoms: list[Plan], measure: Measure, seed: int) -> Judged:
    chance = chance_of(measure.values(plan), randoms, measure, Null.NORMAL, seed)
    return with_verdict(chance, chance.p, chance.p_worse, 1, Null.NORMAL)


def _mean_random(measure: Measure, randoms: list[Plan]) -> Array:
    """The mean over random plans of every row [N]."""
    mean: Array = np.mean([measure.values(plan) for plan in randoms], axis=0)
    return mean
