"""Does the criterion's lead over random plans survive recovery? Before and after the same training, on the same rows."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from criteria.statistics import Array
from experts.plan import Plan
from validate.null import Judged, Measure, chance_of, number, with_verdict
from validate.statistics import Interval, clustered_interval, clustered_share
from validate.verdict import Null, Survival, survival


@dataclass(frozen=True)
class Healed:
    """What recovery did to one plan by one measure. before, after: cost over the unpruned model (nats, or share of items lost).

    gain: before − after, with its interval over documents or items; share: of the cost that recovery took back, nan where there is none.
    """

    name: str
    metric: str
    before: float
    after: float
    gain: Interval
    share: float
    share_interval: Interval

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "metric": self.metric,
            "before": self.before,
            "after": self.after,
            "gain": self.before - self.after,
            "gain_interval": _ends(self.gain),
            "share": number(self.share),
            "share_interval": _ends(self.share_interval),
            "share_note": self.share_interval.reason,
        }


@dataclass(frozen=True)
class Lead:
    """mean random cost − the criterion's cost, before and after recovery, with intervals over documents, for the recovered random plans.

    before: judged against all random plans that were measured before recovery; after: against the recovered ones. kept: share of the lead
    of before that is still there after.
    """

    name: str
    metric: str
    before: Judged
    after: Judged
    lead_before: float
    interval_before: Interval
    lead_after: float
    interval_after: Interval
    kept: float
    kept_interval: Interval

    @property
    def verdict(self) -> Survival:
        return survival(self.before.verdict, self.after.verdict)

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "metric": self.metric,
            "verdict": self.verdict,
            "lead_before": self.lead_before,
            "interval_before": _ends(self.interval_before),
            "lead_after": self.lead_after,
            "interval_after": _ends(self.interval_after),
            "kept": number(self.kept),
            "kept_interval": _ends(self.kept_interval),
            "kept_note": self.kept_interval.reason,
            "before": self.before.to_json(),
            "after": self.after.to_json(),
        }


def healed(plan: Plan | None, before: Measure, after: Measure, seed: int) -> Healed:
    """One plan by one measure; None = the unpruned model, which has nothing to recover."""
    full, old, new = before.values(None), before.values(plan), after.values(plan)
    gain = clustered_interval(old - new, before.weights, before.clusters, seed)
    share, interval = clustered_share(old - new, old - full, before.weights, before.clusters, seed)
    return Healed(
        before.name, before.metric, before.mean(old - full), before.mean(new - full), gain, share, interval
    )


def lead(
    plan: Plan, randoms: list[Plan], known: list[Plan], before: Measure, after: Measure, seed: int
) -> Lead:
    """The criterion's plan against random plans that got the same recovery.

    known: random plans measured before recovery, `randoms` first: more of them tell better whether there was a lead. p: from a t
    distribution through the random plans (counting would need 19 of them for p ≤ 0.05).
    """
    old, new = (
        _mean_random(before, randoms) - before.values(plan),
        _mean_random(after, randoms) - after.values(plan),
    )
    kept, interval = clustered_share(new, old, before.weights, before.clusters, seed)
    return Lead(
        name=before.name,
        metric=before.metric,
        before=_judged(before.values(plan), known, before, seed),
        after=_judged(after.values(plan), randoms, after, seed),
        lead_before=before.mean(old),
        interval_before=clustered_interval(old, before.weights, before.clusters, seed),
        lead_after=before.mean(new),
        interval_after=clustered_interval(new, before.weights, before.clusters, seed),
        kept=kept,
        kept_interval=interval,
    )


def _judged(own: Array, randoms: list[Plan], measure: Measure, seed: int) -> Judged:
    chance = chance_of(own, randoms, measure, Null.NORMAL, seed)
    return with_verdict(chance, chance.p, chance.p_worse, 1, Null.NORMAL)


def _mean_random(measure: Measure, randoms: list[Plan]) -> Array:
    """Of every row [N]."""
    mean: Array = np.mean([measure.values(plan) for plan in randoms], axis=0)
    return mean


def _ends(interval: Interval) -> list[float | None]:
    return [number(interval.low), number(interval.high)]
