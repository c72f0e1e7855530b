"""What criteria cost on a model of some size, in plain forwards of the calibration text.

The registry's costs of interventions were measured on the demo; they grow as its column `grows` says.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from criteria.budget import Budget
from criteria.criterion import OBSERVED, Criterion
from experts.shape import Shape

DEMO = Shape(layers=tuple(range(6)), num_experts=16, top_k=4)
DEMO_ROUNDS = 8  # of a search down to half of the demo's experts
# Settings of the rows whose cost grows with them.
DEFAULTS = {"probes": 4, "steps": 8, "draws": 1, "updates": 100, "shortlist": 16, "passes": 4}


@dataclass(frozen=True)
class CalibrationPass:
    """One pass over the calibration text.

    Attributes:
        name: of the criteria that share it.
        forwards: plain forwards of the calibration text.
    """

    name: str
    forwards: float


def calibration_passes(
    criteria: Iterable[Criterion], shape: Shape, budget: Budget, windows: int
) -> list[CalibrationPass]:
    """The passes that criteria need; those that share one appear once.

    Args:
        budget: what a search prunes down to.
        windows: of the calibration text, N.

    Returns:
        The observed statistics first, which every run takes, then a row per experiment.
    """
    experiments: dict[str, Criterion] = {}
    observed = OBSERVED
    for criterion in criteria:
        if criterion.measurement is not None:
            experiments.setdefault(criterion.measurement.key, criterion)
        else:
            observed = max(observed, criterion.cost)
    rows = [CalibrationPass("observed statistics", observed)]
    for criterion in experiments.values():
        share = _share_of_windows(criterion, windows)
        rows.append(
            CalibrationPass(criterion.name, criterion.cost * _growth(criterion, shape, budget) * share)
        )
    return rows


def _growth(criterion: Criterion, shape: Shape, budget: Budget) -> float:
    """How many times the demo's cost."""
    factors = {
        "L": shape.num_layers / DEMO.num_layers,
        "E": shape.num_experts / DEMO.num_experts,
        "k": shape.top_k / DEMO.top_k,
        "rounds": rounds_of(criterion, shape, budget) / DEMO_ROUNDS,
    }
    growth = 1.0
    for name in filter(None, criterion.grows.split("·")):
        growth *= factors[name] if name in factors else _setting(criterion, name) / DEFAULTS[name]
    return growth


def rounds_of(criterion: Criterion, shape: Shape, budget: Budget) -> float:
    """Rounds of a search: asked for, or as many as its step needs."""
    if not criterion.by_rounds:
        return DEMO_ROUNDS
    asked, step = _setting(criterion, "rounds"), _setting(criterion, "step")
    removed = shape.total - budget.total
    in_every_layer = shape.num_layers if budget.scope == "layer" else 1
    return asked or -(-removed // (step * in_every_layer))


def _setting(criterion: Criterion, name: str) -> int:
    assert criterion.measurement is not None, "only measured criteria have settings"
    return int(criterion.measurement.values[name])


def _share_of_windows(criterion: Criterion, windows: int) -> float:
    assert criterion.measurement is not None, "only measured criteria have settings"
    used = int(criterion.measurement.values.get("windows", 0))  # sums over pairs are of all
    return min(1.0, used / windows) if used else 1.0
