"""How often a command reads the model's files where decoder layers are read one by one."""

from criteria.criterion import GRADIENTS, Criterion
from prune.forecast.criterion_cost import rounds_of
from prune.session.prepared import Checked


def readings_of(command: str, checked: Checked) -> list[str]:
    """What reads all files, in order, a word for every reading; without fingerprint, export and reloading."""
    recipe = checked.recipe
    readings = {"calibration": 1}
    for criterion in checked.criteria:
        if criterion.measurement is not None:
            readings.setdefault(criterion.measurement.key, _of_experiment(criterion, checked))
    readings |= {"checks": 1, "plans": 1}
    if recipe.validation.tasks:
        readings["tasks"] = 1
    if command == "prune":
        readings["proof of the checkpoint"] = 1
    if command == "audit":
        readings["audit"] = 1
        if recipe.validation.progressive:
            readings["curves"] = 1
    return [name for name, count in readings.items() for _ in range(count)]


def _of_experiment(criterion: Criterion, checked: Checked) -> int:
    """Gradients sweep up and down, for every point of a path; a search begins anew in every round."""
    assert criterion.measurement is not None, "asked only of those"
    if criterion.needs == GRADIENTS:
        return 2 * int(criterion.measurement.values.get("steps", 1))
    if not criterion.searches:
        return 1
    budget = checked.budgets[checked.recipe.prune.scope]
    return int(rounds_of(criterion, checked.shape, budget))
