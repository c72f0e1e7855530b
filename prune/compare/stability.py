"""Would another draw of calibration text have made the same plan? The criteria again, on windows of other seeds."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from criteria.budget import Budget, deepest
from criteria.registry import Criterion
from criteria.selection import select
from experts.notes import tell
from experts.plan import Plan
from prune.session.prepare import Prepared
from prune.session.session import Session
from validate.overlap import stability
from validate.statistics import number


def affordable(prepared: Prepared) -> tuple[Criterion, ...]:
    """Criteria that are calibrated again: those that are cheap enough."""
    return tuple(one for one in prepared.criteria if one.cost <= prepared.recipe.compare.stability_cost)


def stabilities(
    session: Session, budgets: tuple[Budget, ...], known: dict[tuple[str, Budget], Plan]
) -> dict[str, Any]:
    """Mean and smallest chance-corrected overlap of the plans of all seeds, per criterion and budget; None for what was not repeated.

    windows_shared_by_seeds: mean share of the first seed's windows that the others drew too. Where a text is used up all seeds draw the
    same: then nothing was repeated, and a note says so.
    """
    prepared = session.prepared
    plans, shared = {key: [plan] for key, plan in known.items()}, []
    chosen, first = affordable(prepared), prepared.recipe.calibration.seed
    for seed in range(first + 1, first + prepared.recipe.compare.seeds):
        other = session.reseeded(seed, chosen)
        shared.append(_shared(session.calibration.tokens, other.calibration.tokens))
        if shared[-1] < 1:
            for key, plan in _plans(other, budgets).items():
                plans[key].append(plan)
    if shared and min(shared) == 1:
        tell(
            "stability is not measured: every calibration seed takes the same windows; add calibration text, or lower its sequences"
        )
    return {
        "windows_shared_by_seeds": sum(shared) / len(shared) if shared else None,
        "stability": [_row(*one) for one in plans.items()],
    }


def _row(key: tuple[str, Budget], plans: list[Plan]) -> dict[str, Any]:
    mean, smallest = stability(plans)
    common = {"criterion": key[0], "scope": key[1].scope, "fraction": round(plans[0].fraction, 6)}
    return {**common, "seeds": len(plans), "mean": number(mean), "smallest": number(smallest)}


def _shared(one: NDArray[np.int64], other: NDArray[np.int64]) -> float:
    """Share of the windows [N, W] of `one` that are among those of `other`."""
    known = {row.tobytes() for row in other}
    return sum(row.tobytes() in known for row in one) / len(one)


def _plans(session: Session, budgets: tuple[Budget, ...]) -> dict[tuple[str, Budget], Plan]:
    plans: dict[tuple[str, Budget], Plan] = {}
    statistics = session.calibrate()
    # As the first seed's: a search goes down to the smallest budget of its scope.
    measured = {scope: session.measured(statistics, budget) for scope, budget in deepest(budgets).items()}
    tables = {scope: session.rank(found) for scope, found in measured.items()}
    for budget in budgets:
        table = tables[budget.scope]
        plans |= {(scores.criterion, budget): select(scores, budget, session.shape) for scores in table}
    return plans
