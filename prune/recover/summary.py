"""The content of recovery.json: what every plan cost before and after recovery, and what is left of the criterion's lead."""

import csv
import io
from collections.abc import Iterable, Mapping
from typing import Any

from experts.plan import Plan
from finetune.adapters import find_targets
from finetune.recovery import Job
from prune.recipe.schema import FinetuneSettings
from prune.session.run_folder import describe
from validate.lead import lead_of, recovery_of
from validate.null import Measure
from validate.verdict import LEAD_RULE

SETTINGS = {
    "targets",
    "rank",
    "alpha",
    "learning_rate",
    "weight_decay",
    "ce",
    "kl",
    "temperature",
    "seed",
    "bf16",
}
COLUMNS = ("plan", "step", "tokens", "seconds", "held_out", "delta", "share")
Measures = list[tuple[Measure, Measure]]
Curve = list[dict[str, float]]


def described(settings: FinetuneSettings, job: Job, tuned: int, model: str, keep: str) -> dict[str, Any]:
    """How a model was trained, for provenance and reports. tuned: parameters; keep: where the teacher was."""
    teacher = {
        "model": settings.teacher.model or model,
        "keep": keep,
        "top_k": settings.teacher.top_k if keep == "disk" else None,
    }
    return {
        **settings.model_dump(mode="json", include=SETTINGS),
        "teacher": teacher if settings.kl else None,
        "steps": job.steps,
        "tokens": job.steps * job.tokens_per_step,
        "text": describe(job.windows),
        "tuned": tuned,
        "weights": len(find_targets(job.anatomy, settings.targets).weights),
    }


def found(
    plans: Mapping[str, Plan], known: list[Plan], measures: Measures, curves: Mapping[str, Curve], seed: int
) -> dict[str, Any]:
    """plans: by name, `criterion` first and random-0, …; measures: before and after recovery; curves: held-out loss during training.

    known: random plans measured before recovery, those of `plans` first.
    """
    loss = measures[0][0]
    full, own = loss.mean(loss.values(None)), plans["criterion"]
    randoms = [plan for name, plan in plans.items() if name.startswith("random-")]
    return {
        "criterion": own.criterion,
        "budget": own.budget,
        "fraction": round(own.fraction, 6),
        "loss": full,
        "full": {measure.name: measure.sign * measure.mean(measure.values(None)) for measure, _ in measures},
        "plans": [_plan(name, plan, measures, curves[name], full, seed) for name, plan in plans.items()],
        "leads": [
            lead_of(own, randoms, known[: before.randoms], before, after, seed).to_json()
            for before, after in measures
        ]
        if randoms
        else [],
        "rule": LEAD_RULE,
    }


def _plan(name: str, plan: Plan, measures: Measures, curve: Curve, full: float, seed: int) -> dict[str, Any]:
    found = [recovery_of(plan, before, after, seed).to_json() for before, after in measures]
    gap = found[0]["before"] if found[0]["share"] is not None else None  # a share of nothing is no number
    points = [
        {**row, "delta": row["held_out"] - full, "share": gap and (gap - row["held_out"] + full) / gap}
        for row in curve
    ]
    return {"name": name, "plan": plan.criterion, "digest": plan.digest, "measures": found, "curve": points}


def healing_csv(plans: Iterable[Mapping[str, Any]]) -> str:
    """Recovered share of the gap against training tokens, a row per plan and point."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({"plan": plan["name"], **row} for plan in plans for row in plan["curve"])
    return text.getvalue()
