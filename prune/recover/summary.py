"""The measured part of recovery.json: costs before and after recovery, and what is left of the lead."""

from collections.abc import Iterable, Mapping

from experts.plan import Plan
from finetune.results import CurvePoint
from prune.recover.result import CurvePointJson, RecoveredPlanJson, RecoverySummary
from prune.tables import csv_text
from validate.lead import lead_of, recovery_of
from validate.measure import Measure
from validate.verdict import LEAD_RULE

CURVE_COLUMNS = ("plan", "step", "tokens", "seconds", "held_out", "delta", "share")
Measures = list[tuple[Measure, Measure]]  # before and after recovery: the held-out loss first, then tasks
Curve = list[CurvePoint]  # rows of curve.csv


def recovery_summary(
    plans: Mapping[str, Plan], known: list[Plan], measures: Measures, curves: Mapping[str, Curve], seed: int
) -> RecoverySummary:
    """What recovery did to the criterion's plan and to random ones.

    Args:
        plans: by name, `criterion` first and random-0, …; all were recovered.
        known: random plans measured before recovery, those of `plans` first.
        measures: the same evaluators before and after recovery.
        curves: held-out loss during training, by the names of `plans`.
        seed: of the bootstrap.
    """
    loss, own = measures[0][0], plans["criterion"]
    full = loss.mean(loss.values(None))
    randoms = [plan for name, plan in plans.items() if name.startswith("random-")]
    leads = []
    for before, after in measures if randoms else ():
        leads.append(lead_of(own, randoms, known[: before.randoms], before, after, seed).to_json())
    return {
        "criterion": own.criterion,
        "budget": own.budget,
        "fraction": round(own.fraction, 6),
        "loss": full,
        "full": {before.name: before.sign * before.mean(before.values(None)) for before, _ in measures},
        "plans": [_plan(name, plan, measures, curves[name], full, seed) for name, plan in plans.items()],
        "leads": leads,
        "rule": LEAD_RULE,
    }


def _plan(
    name: str, plan: Plan, measures: Measures, curve: Curve, full: float, seed: int
) -> RecoveredPlanJson:
    recoveries = [recovery_of(plan, before, after, seed).to_json() for before, after in measures]
    loss = recoveries[0]
    gap = None if loss["share"] is None else loss["before"]  # a share of nothing is no number
    return {
        "name": name,
        "plan": plan.criterion,
        "digest": plan.digest,
        "measures": recoveries,
        "curve": [_point(row, full, gap) for row in curve],
    }


def _point(row: CurvePoint, full: float, gap: float | None) -> CurvePointJson:
    """A row of curve.csv beside the unpruned model's loss.

    Args:
        full: loss of the unpruned model.
        gap: what pruning added to it; None = not significantly more than nothing.
    """
    held_out = row["held_out"]
    return {
        "step": row["step"],
        "tokens": row["tokens"],
        "seconds": row["seconds"],
        "held_out": held_out,
        "delta": held_out - full,
        "share": gap and (gap - held_out + full) / gap,
    }


def recovery_csv(plans: Iterable[RecoveredPlanJson]) -> str:
    """healing.csv: the recovered share of the gap against training tokens, a row per plan and point."""
    rows: list[dict[str, object]] = []
    for plan in plans:
        rows += [{"plan": plan["name"], **point} for point in plan["curve"]]
    return csv_text(CURVE_COLUMNS, rows)
