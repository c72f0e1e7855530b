"""Plans before and after their refit: what it gave back, and whether a lead over random plans survives it."""

from collections.abc import Sequence

from validate.chance import Judgement
from validate.evidence import Evidence, Judged
from validate.lead import recovery_of
from validate.measure import Measure
from validate.results import EvidenceJson, RefittedJson
from validate.verdict import survival


def with_refit(
    judgement: Judgement, before: Measure, after: Sequence[Measure], seed: int
) -> list[EvidenceJson]:
    """Every plan as results have it; under `refit` the same after it, where it was asked for.

    Args:
        judgement: of the plans, with the later evidence
        before: the held-out loss before the refit
        after: the measures after it, the loss first; empty = there is no refit
        seed: of the intervals
    """
    plans = [evidence.to_json() for evidence in judgement.evidence]
    if not after:
        return plans
    pairs = zip(plans, judgement.evidence, judgement.later, strict=True)
    return [{**plan, "refit": _refitted(old, new, before, after[0], seed)} for plan, old, new in pairs]


def _refitted(
    old: Evidence[Judged], new: Evidence[Judged], before: Measure, after: Measure, seed: int
) -> RefittedJson:
    loss, *tasks = new.costs
    recovered = recovery_of(old.plan, before, after, seed).to_json()
    return {
        **loss.against_nulls(),
        "gain": recovered["gain"],
        "gain_interval": recovered["gain_interval"],
        "share": recovered["share"],
        "share_interval": recovered["share_interval"],
        "survival": survival(old.verdict, new.verdict),
        "conclusion": new.conclusion,
        "domains": [cost.to_json() for cost in loss.domains],
        "tasks": [cost.to_json() for cost in tasks],
    }
