"""How often a command reads the model's files where decoder layers are read one by one.

Every reading is of all layers. Gradients read them upward and downward; the top layer, which stays in memory
between the two, counts twice here and is read once.
"""

from collections.abc import Iterable

from criteria.budget import Budget, deepest
from criteria.criterion import ACTIVATIONS, GRADIENTS, Criterion
from criteria.experiment import PAIR_SLOPES, RECON, SWAPS, prerequisites
from prune.forecast.criterion_cost import rounds_of
from prune.session.prepared import Checked

FAST_PATH = 3  # readings in which an instrument compares its fast path with whole forwards
CURVES = 2 * (1 + FAST_PATH)  # experts in order, and the largest gate weights first


def readings_of(command: str, checked: Checked, passes: int = 1) -> list[str]:
    """What reads all files, in order, a word for every reading; without fingerprint, export and reloading.

    Args:
        command: prune, compare, audit or finetune
        checked: the recipe
        passes: readings that all plans together take: states that do not fit into memory wait for another;
            as many plans as fit side by side are refitted in one, of which one is counted
    """
    recipe, own = checked.recipe, checked.budgets[checked.recipe.prune.scope]
    budgets = list(deepest(checked.compared).values()) if command == "compare" else [own]
    readings = _of_criteria(checked.criteria, budgets, checked)
    if command == "compare":
        again = sum(_of_criteria(recipe.compare.repeated(checked.criteria), budgets, checked).values())
        readings["stability"] = (recipe.compare.seeds - 1) * again
    readings["checks"] = 1
    if command == "audit":
        readings["audit"] = 1 + FAST_PATH
        readings["curves"] = CURVES if recipe.validation.progressive else 0
    else:
        readings["counts per layer"] = len(checked.criteria) if recipe.prune.counts == "refitted" else 0
        readings["plans"] = passes
        readings["tasks"] = 1 if recipe.validation.tasks else 0
        readings["refit"] = 1 if recipe.refit else 0
    if command == "prune":
        readings["proof of the checkpoint"] = 1
    return [name for name, count in readings.items() for _ in range(count)]


def _of_criteria(criteria: Iterable[Criterion], budgets: list[Budget], checked: Checked) -> dict[str, int]:
    """Calibration, and the experiments; those that share one share its readings, a search has its own."""
    readings = {"calibration": 1}
    for criterion in criteria:
        if criterion.measurement is not None:
            for needed in prerequisites(criterion.measurement):
                up_and_down = needed.kind == PAIR_SLOPES.kind
                readings.setdefault(needed.key, 2 if up_and_down else 1 + FAST_PATH)
            for_budgets = budgets if criterion.searches else budgets[:1]
            counts = [_of_experiment(criterion, budget, checked) for budget in for_budgets]
            readings.setdefault(criterion.measurement.key, sum(counts))
    return readings


def _of_experiment(criterion: Criterion, budget: Budget, checked: Checked) -> int:
    """Gradients sweep up and down, for every point of a path; a search begins anew in every round."""
    assert criterion.measurement is not None, "asked only of those"
    if criterion.in_numbers or not criterion.cost:
        return 0  # arithmetic on what was measured before
    if criterion.measurement.kind == RECON.kind:  # outputs, greedy, swaps; in scope global slopes too
        return 3 if budget.scope == "layer" else 5
    if criterion.measurement.kind == SWAPS.kind:  # swaps one by one, then together; fewer where none is left
        return FAST_PATH + 2 * int(criterion.measurement.values["passes"])
    if criterion.needs == GRADIENTS:
        return 2 * int(criterion.measurement.values.get("steps", 1))
    if criterion.needs == ACTIVATIONS:
        return 1
    return FAST_PATH + (int(rounds_of(criterion, checked.shape, budget)) if criterion.by_rounds else 1)
