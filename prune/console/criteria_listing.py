"""What `excise criteria --json` prints."""

from typing import TYPE_CHECKING, TypedDict

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


def row_of(criterion: "Criterion") -> CriterionJson:
    """A criterion as it is listed."""
    return {
        "name": criterion.name,
        "formula": criterion.formula,
        "needs": criterion.needs,
        "cost": criterion.cost,
        "grows": criterion.grows,
        "source": criterion.source,
        "settings": {
            name: {"default": option.default, "help": option.help}
            for name, option in criterion.options.items()
        },
    }
