"""Would another draw of calibration text have made the same plan? The criteria again, with other seeds."""

from dataclasses import replace

from criteria.budget import Budget, deepest
from criteria.ranking import select
from experts.arrays import Ids
from experts.notes import tell
from experts.plan import Plan
from prune.compare.result import StabilitiesJson, StabilityJson
from prune.compare.searches import scores_of
from prune.session.session import Session
from validate.overlap import stability
from validate.statistics import number

SAME_WINDOWS = (
    "stability is not measured: every calibration seed takes the same windows; "
    "add calibration text, or lower its sequences"
)
PlanKey = tuple[str, Budget]  # criterion and budget


def stabilities(session: Session, budgets: tuple[Budget, ...], plans: dict[PlanKey, Plan]) -> StabilitiesJson:
    """How alike the plans of all calibration seeds are, per criterion and budget.

    Where a text is used up all seeds draw the same windows: then nothing is repeated, and a note says so.

    Args:
        plans: of the first seed, by criterion and budget.
    """
    settings = session.prepared.recipe
    criteria = settings.compare.repeated(session.prepared.criteria)
    by_seed = {key: [plan] for key, plan in plans.items()}
    shared: list[float] = []
    first = settings.calibration.seed
    for seed in range(first + 1, first + settings.compare.seeds):
        other = session.reseeded(seed, criteria)
        shared.append(_shared(session.texts.calibration.tokens, other.texts.calibration.tokens))
        if shared[-1] < 1:
            for key, plan in _plans(other, budgets, plans).items():
                by_seed[key].append(plan)
    if shared and min(shared) == 1:
        tell(SAME_WINDOWS)
    return {
        "windows_shared_by_seeds": sum(shared) / len(shared) if shared else None,
        "stability": [_row(criterion, budget, same) for (criterion, budget), same in by_seed.items()],
    }


def _row(criterion: str, budget: Budget, plans: list[Plan]) -> StabilityJson:
    mean, smallest = stability(plans)
    return {
        "criterion": criterion,
        "scope": budget.scope,
        "fraction": round(plans[0].fraction, 6),
        "seeds": len(plans),
        "mean": number(mean),
        "smallest": number(smallest),
    }


def _shared(windows: Ids, others: Ids) -> float:
    """Share of the windows [N, W] that are among others [N, W]."""
    known = {tokens.tobytes() for tokens in others}
    return sum(tokens.tobytes() in known for tokens in windows) / len(windows)


def _plans(session: Session, budgets: tuple[Budget, ...], first: dict[PlanKey, Plan]) -> dict[PlanKey, Plan]:
    """Of another seed. As of the first one, a search goes down to the smallest budget of its scope.

    Counts per layer that were measured are those of the first seed: measured anew they would cost as much as
    all the rest.
    """
    rankings = {scope: scores_of(session, budget) for scope, budget in deepest(budgets).items()}
    plans: dict[PlanKey, Plan] = {}
    for budget in budgets:
        for scores in rankings[budget.scope]:
            key = scores.criterion, budget
            measured = budget.scope == "global" and session.recipe.prune.counts == "refitted"
            counts = tuple(first[key].counts.values()) if measured else budget.counts
            plans[key] = select(scores, budget=replace(budget, counts=counts))
    return plans
