"""`excise criteria`."""

from typing import TYPE_CHECKING, TypedDict

from prune.console import show
from prune.console.exits import guarded
from prune.console.options import Debug, Json

if TYPE_CHECKING:
    from criteria.criterion import Criterion


class SettingJson(TypedDict):
    """A setting of an experiment, written name:setting=value in a recipe."""

    default: int | str
    help: str


class CriterionJson(TypedDict):
    """A row of the registry, as `excise criteria --json` prints it."""

    name: str
    formula: str
    needs: str  # the evidence: weights, text, domains, gradients, interventions
    cost: float  # plain forwards of the calibration text; of experiments, on the demo
    grows: str  # what the cost of an experiment is proportional to; else empty
    source: str
    settings: dict[str, SettingJson]


def criteria(as_json: Json = False, debug: Debug = False) -> None:
    """List the criteria: formula, evidence, cost in plain forwards of the calibration text, source."""

    def work() -> int:
        from criteria.registry import CRITERIA

        rows = [_row(criterion) for criterion in CRITERIA.values()]
        show.print_json(rows) if as_json else show.criteria(rows)
        return 0

    guarded(work, True, debug)


def _row(criterion: "Criterion") -> CriterionJson:
    options = criterion.experiment.options if criterion.experiment else {}
    return {
        "name": criterion.name,
        "formula": criterion.formula,
        "needs": criterion.needs,
        "cost": criterion.cost,
        "grows": criterion.grows,
        "source": criterion.source,
        "settings": {
            name: {"default": option.default, "help": option.help} for name, option in options.items()
        },
    }
