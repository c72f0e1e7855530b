"""CRITERIA: every criterion is a row. Baselines are rows like any other, so no report can leave them out.

A criterion is a function Statistics -> scores [L, E], higher = keep. `random` and `random:<seed>`, `reversed:<name>`,
`family:<α>,<β>,mean|sum`, `file.py:function` and measured criteria with settings (`causal_removal:windows=16`) are resolved by name.
"""

import difflib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from criteria import formulas
from criteria.experiment import (
    FISHER,
    GRADIENT,
    GREEDY,
    INTEGRATED,
    POSITION,
    REMOVAL,
    Experiment,
    Measurement,
)
from criteria.statistics import Statistics
from experts.arrays import Array
from experts.errors import ExciseError, one_line

Score = Callable[[Statistics], Array]
LEAVE_ONE_OUT = "causal_removal"


@dataclass(frozen=True)
class Criterion:
    """name: what recipes call it; formula: printed in every report; needs: evidence.

    cost: in plain forwards of the calibration text; of measured criteria on the demo (L, E, k = 6, 16, 4), and `grows` says with what.
    measurement: the experiment whose results the score reads, None for one of observed statistics. experiment: its settings.
    """

    name: str
    score: Score
    formula: str
    needs: str
    cost: float
    source: str
    grows: str = ""
    experiment: Experiment | None = None
    measurement: Measurement | None = None

    @property
    def searches(self) -> bool:
        """Whether its scores are those of a search under one budget: for another one it searches anew."""
        return self.measurement is not None and self.measurement.kind == GREEDY.kind


def measured(
    name: str, experiment: Experiment, part: str, formula: str, cost: float, grows: str, source: str
) -> Criterion:
    """A row whose score is the result `part` of an experiment with its default settings."""
    measurement = experiment.settled(name, "")
    score = partial(_result, key=measurement.key, part=part)
    needs = INTERVENTIONS if experiment in (POSITION, REMOVAL, GREEDY) else GRADIENTS
    return Criterion(name, score, formula, needs, cost, source, grows, experiment, measurement)


def _result(statistics: Statistics, key: str, part: str) -> Array:
    if key not in statistics.measured:
        raise ExciseError(
            f"{key}: has not been measured; this criterion needs the loaded model, not only statistics"
        )
    return statistics.measured[key][part]


def random_scores(statistics: Statistics, seed: int = 0) -> Array:
    """Uniform scores in [0, 1), the baseline every criterion must beat."""
    return np.random.default_rng([20061117, seed]).random(statistics.count.shape)


def reversed_scores(statistics: Statistics, score: Score) -> Array:
    """The negative of another criterion: what it would keep is pruned. Experts without data stay without."""
    return -score(statistics)


TEXT, WEIGHTS, DOMAINS = "text", "weights", "text of ≥ 2 domains"
GRADIENTS, INTERVENTIONS = "text, gradients", "text, interventions"
OBSERVED = 1.1  # plain forwards; measured by benchmarks/calibration.py, one pass for all rows together

CRITERIA: dict[str, Criterion] = {
    row.name: row
    for row in (
        Criterion("utilization", formulas.utilization, "n_e / T", TEXT, OBSERVED, "2404.05089, 2510.13999"),
        Criterion("routing_mass", formulas.routing_mass, "Σ g / T", TEXT, OBSERVED, "soft count"),
        Criterion("routing_weight", formulas.routing_weight, "mean g", TEXT, OBSERVED, "2606.10703"),
        Criterion("activation_norm", formulas.activation_norm, "mean ‖f‖", TEXT, OBSERVED, "2606.10703"),
        Criterion(
            "activation_norm_sum", formulas.activation_norm_sum, "Σ ‖f‖", TEXT, OBSERVED, "2510.13999 App. D"
        ),
        Criterion("activation_square", formulas.activation_square, "mean ‖f‖²", TEXT, OBSERVED, "2606.15716"),
        Criterion("activation_std", formulas.activation_std, "std ‖f‖", TEXT, OBSERVED, "2606.10703"),
        Criterion("reap", formulas.reap, "mean g·‖f‖", TEXT, OBSERVED, "2510.13999"),
        Criterion("reap_sum", formulas.reap_sum, "Σ g·‖f‖", TEXT, OBSERVED, "2607.01444"),
        Criterion(
            "easy_ep", formulas.easy_ep, "Σ g·‖f‖·max(1 − cos(h, h + y), 0)", TEXT, OBSERVED, "2504.06792"
        ),
        Criterion("max_activation", formulas.max_activation, "max |f|", TEXT, OBSERVED, "2507.23279"),
        Criterion(
            "hub",
            formulas.hub,
            "eigenvector centrality of P(j active | i active) ∝ n_e",
            TEXT,
            OBSERVED,
            "2602.04291",
        ),
        Criterion(
            "hub_joint",
            formulas.hub_joint,
            "eigenvector centrality of P(i and j active)",
            TEXT,
            OBSERVED,
            "variant of hub",
        ),
        Criterion(
            "specialization",
            formulas.specialization,
            "1 − H(p(d|e)) / log D",
            DOMAINS,
            OBSERVED,
            "2601.10159",
        ),
        Criterion("router_norm", formulas.router_norm, "‖router row‖", WEIGHTS, 0.0, "2504.05586"),
        Criterion("weight_norm", formulas.weight_norm, "‖w‖ (Frobenius)", WEIGHTS, 0.0, "classic"),
        Criterion("aimer", formulas.aimer, "−(‖w‖₁/N) / √(‖w‖₂²/N)", WEIGHTS, 0.0, "2603.18492"),
        measured(
            "gradient",
            GRADIENT,
            "gradient",
            "−∂L/∂α (α: multiplier of g, L: mean CE)",
            3.4,
            "",
            "2602.04291, 2403.00745",
        ),
        measured(
            "gradient_abs", GRADIENT, "gradient_abs", "Σ |g f·∂L/∂y| / T", 3.4, "", "2602.04291, 2403.00745"
        ),
        measured("fisher", FISHER, "fisher", "Σ (∂L_t/∂α)²", 5.2, "probes", "empirical Fisher"),
        measured(
            "integrated",
            INTEGRATED,
            "integrated",
            "−∫ ∂L/∂α dα, all α from 1 to 0",
            18.0,
            "steps",
            "1703.01365",
        ),
        measured(
            "causal_position",
            POSITION,
            "score",
            "Σ_t ΔCE_t / T, e removed at t alone",
            20.0,
            "L·k",
            "2606.10703",
        ),
        measured(
            "causal_removal", REMOVAL, "score", "mean ΔCE, e removed everywhere", 50.0, "L·E", "leave one out"
        ),
        measured(
            "causal_greedy",
            GREEDY,
            "score",
            "order of removal by ΔCE given the earlier ones",
            360.0,
            "L·E·rounds",
            "2607.01940",
        ),
        Criterion("random", random_scores, "uniform, seeded", "nothing", 0.0, "baseline"),
    )
}


def resolve(name: str) -> Criterion:
    """The criterion of that name. Raises ExciseError with the nearest known name."""
    if name in CRITERIA:
        return CRITERIA[name]
    kind, colon, rest = name.partition(":")
    if kind == "reversed" and colon:
        base = resolve(rest)
        score = partial(reversed_scores, score=base.score)
        return replace(base, name=name, score=score, formula=f"−({base.formula})")
    if kind == "random" and rest.isascii() and rest.isdigit():
        return Criterion(
            name, partial(random_scores, seed=int(rest)), f"uniform, seed {rest}", "nothing", 0.0, "baseline"
        )
    if kind == "family":
        return _family(name, rest)
    if colon and (row := CRITERIA.get(kind)) and row.experiment:
        measurement = row.experiment.settled(kind, rest)
        _check_start(measurement)
        part = row.score.keywords["part"] if isinstance(row.score, partial) else ""
        score = partial(_result, key=measurement.key, part=part)
        return replace(
            row, name=name, score=score, formula=f"{row.formula} ({rest})", measurement=measurement
        )
    if kind.endswith(".py"):
        return _from_file(name, Path(kind), rest)
    near = difflib.get_close_matches(name, [*CRITERIA, "reversed:reap"], n=1)
    hint = f"did you mean {near[0]}?" if near else "`excise criteria` lists them"
    raise ExciseError(f"unknown criterion {name!r}; {hint}")


def _check_start(measurement: Measurement) -> None:
    """A search begins with a criterion: one that cannot be is refused by name, not after the calibration."""
    start = measurement.values.get("start", LEAVE_ONE_OUT)
    if start != LEAVE_ONE_OUT and resolve(start).measurement is not None:
        ways = f"use {LEAVE_ONE_OUT} or a criterion of observed statistics"
        raise ExciseError(f"causal_greedy: start={start} is measured itself; {ways}")


def _family(name: str, rest: str) -> Criterion:
    match rest.split(","):
        case [("0" | "1" | "2") as alpha, ("0" | "1" | "2") as beta, ("mean" | "sum") as kind]:
            score = partial(formulas.family, alpha=int(alpha), beta=int(beta), mean=kind == "mean")
            return Criterion(name, score, f"{kind} g^{alpha}·‖f‖^{beta}", TEXT, OBSERVED, "2606.15716")
    raise ExciseError(
        f"criterion {name!r}: expected family:<α>,<β>,mean or sum with α and β in 0, 1, 2, for example family:1,2,mean"
    )


def _from_file(name: str, path: Path, function: str) -> Criterion:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ExciseError(f"criterion {name!r}: no file {path}")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ExciseError(
            f"criterion {name!r}: {path} cannot be imported ({type(error).__name__}: {one_line(error)})"
        ) from error
    score = getattr(module, function, None)
    if not callable(score):
        raise ExciseError(f"criterion {name!r}: {path} has no function {function!r}")
    return Criterion(name, score, _described(score, function), "user function", OBSERVED, str(path))


def _described(score: object, name: str) -> str:
    """The first line of a docstring that says something; the name where none does."""
    lines = str(score.__doc__ or "").splitlines()
    return next((line.strip() for line in lines if line.strip()), name)
