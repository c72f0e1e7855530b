"""Would another draw of calibration text have made the same plan? The criteria again, on windows of other seeds."""

from typing import Any

from criteria.budget import Budget
from criteria.registry import Criterion
from criteria.select import select
from experts.plan import Plan
from prune.materials import Materials
from prune.prepare import Prepared
from validate.null import number
from validate.overlap import stability


def affordable(prepared: Prepared) -> tuple[Criterion, ...]:
    """Criteria that are calibrated again: cheap enough, and not plain baselines of the calibration's own noise."""
    return tuple(one for one in prepared.criteria if one.cost <= prepared.recipe.compare.stability_cost)


def stabilities(materials: Materials, budgets: tuple[Budget, ...], known: dict[tuple[str, Budget], Plan]) -> list[dict[str, Any]]:
    """Mean and smallest chance-corrected overlap of the plans of all seeds, per criterion and budget; None for what was not repeated."""
    prepared = materials.prepared
    plans = {key: [plan] for key, plan in known.items()}
    chosen = affordable(prepared)
    first = prepared.recipe.calibration.seed
    for seed in range(first + 1, first + prepared.recipe.compare.seeds):
        for key, plan in _plans(materials.reseeded(seed, chosen), budgets).items():
            plans[key].append(plan)
    rows = []
    for (criterion, budget), found in plans.items():
        mean, smallest = stability(found)
        common = {"criterion": criterion, "scope": budget.scope, "fraction": round(found[0].fraction, 6)}
        rows.append({**common, "seeds": len(found), "mean": number(mean), "smallest": number(smallest)})
    return rows


def _plans(materials: Materials, budgets: tuple[Budget, ...]) -> dict[tuple[str, Budget], Plan]:
    found: dict[tuple[str, Budget], Plan] = {}
    statistics = materials.calibrate()
    for budget in budgets:
        table = materials.rank(materials.measured(statistics, budget))
        found |= {(scores.criterion, budget): select(scores, budget, materials.shape) for scores in table}
    return found
