"""Random plans of exactly the same size per layer, and the test of a criterion's plan against them (METHODS 5)."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from criteria.budget import Shape
from experts.errors import ExciseError
from experts.plan import Plan
from validate.rows import Evaluator
from validate.statistics import Interval, clustered_interval, permutation_p, smallest_detectable, standardized_effect
from validate.verdict import ALPHA, Verdict, judge


@dataclass(frozen=True)
class Contest:
    """What is compared: a criterion's plan, the plan of its reverse under the same budget, and random plans of the plan's sizes."""

    plan: Plan
    reversed_plan: Plan
    randoms: list[Plan]
    formula: str
    scope: str


@dataclass(frozen=True)
class Evidence:
    """A criterion's plan against its null. All losses are ΔCE in nats per token, held-out text, against the unpruned model.

    interval: of the advantage, mean random ΔCE − the plan's ΔCE; positive = better than chance. effect: in sd of the random plans.
    """

    criterion: str
    formula: str
    plan: Plan
    scope: str
    delta: float
    reversed_delta: float
    random: tuple[float, ...]
    p: float
    p_worse: float
    effect: float
    interval: Interval
    smallest_detectable: float
    verdict: Verdict

    def to_json(self) -> dict[str, Any]:
        values = np.array(self.random)
        return {
            "criterion": self.criterion,
            "formula": self.formula,
            "scope": self.scope,
            "fraction": round(self.plan.fraction, 6),
            "kept": self.plan.total,
            "of": self.plan.experts * len(self.plan.kept),
            "kept_per_layer": {str(layer): count for layer, count in self.plan.counts.items()},
            "delta": self.delta,
            "reversed_delta": self.reversed_delta,
            "random": {"values": list(self.random), "mean": float(values.mean()), "sd": float(values.std(ddof=1))},
            "p": self.p,
            "p_worse": self.p_worse,
            "effect": _number(self.effect),
            "interval": [_number(self.interval.low), _number(self.interval.high)],
            "clusters": self.interval.clusters,
            "interval_note": self.interval.reason,
            "smallest_detectable": _number(self.smallest_detectable),
            "verdict": self.verdict,
        }


def _number(value: float) -> float | None:
    """JSON has no nan."""
    return None if math.isnan(value) else value


def random_plans(plan: Plan, shape: Shape, protected: NDArray[np.bool_], count: int, seed: int) -> list[Plan]:
    """`count` plans that keep, in every layer and router group, as many experts as `plan`, chosen at random; protected ones stay."""
    per_group = shape.experts // shape.groups
    quotas = {layer: np.bincount(np.array(ids) // per_group, minlength=shape.groups) for layer, ids in plan.kept.items()}
    if _possible(quotas, protected, shape) < 2:
        raise ExciseError("validate.random_plans: only one plan of this size is possible, so random plans cannot differ; change the budget")
    plans = []
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        kept = {}
        for row, layer in enumerate(shape.layers):
            order = rng.random(shape.experts)
            order[protected[row]] = -1
            best = order.reshape(shape.groups, per_group).argsort(axis=1)
            ids = [g * per_group + int(i) for g in range(shape.groups) for i in best[g, : quotas[layer][g]]]
            kept[layer] = tuple(sorted(ids))
        plans.append(Plan(plan.experts, kept, plan.model, f"random plan {number} (seed {seed})", plan.budget))
    return plans


def _possible(quotas: dict[int, NDArray[np.int64]], protected: NDArray[np.bool_], shape: Shape) -> int:
    """Number of different plans with these quotas, counted up to 2."""
    per_group = shape.experts // shape.groups
    grouped = protected.reshape(len(shape.layers), shape.groups, per_group).sum(axis=2)
    for row, layer in enumerate(shape.layers):
        for group in range(shape.groups):
            free = per_group - int(grouped[row, group])
            if math.comb(free, max(int(quotas[layer][group]) - int(grouped[row, group]), 0)) > 1:
                return 2
    return 1


def against_random(evaluator: Evaluator, test: Contest, seed: int) -> Evidence:
    """Measures the plan, its reverse and the random plans on the same windows, and judges."""
    plan, weights = test.plan, evaluator.weights
    full, own, reverse = (evaluator.losses(measured) for measured in (None, plan, test.reversed_plan))
    bar = tqdm(test.randoms, desc=f"test {plan.criterion}, scope {test.scope}", unit="plan", delay=2)
    chance = np.stack([evaluator.losses(random) for random in bar])  # [R, N]

    def mean(losses: NDArray[np.float64]) -> float:
        return float(np.average(losses, weights=weights))

    delta = mean(own - full)
    null = np.array([mean(losses - full) for losses in chance])
    interval = clustered_interval(chance.mean(axis=0) - own, weights, evaluator.windows.document, seed)
    p, p_worse = permutation_p(delta, null), permutation_p(-delta, -null)
    return Evidence(
        criterion=plan.criterion,
        formula=test.formula,
        plan=plan,
        scope=test.scope,
        delta=delta,
        reversed_delta=mean(reverse - full),
        random=tuple(float(value) for value in null),
        p=p,
        p_worse=p_worse,
        effect=standardized_effect(delta, null),
        interval=interval,
        smallest_detectable=smallest_detectable(null, ALPHA),
        verdict=judge(p, p_worse, interval.low, interval.high),
    )
