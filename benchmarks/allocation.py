"""Counts per layer: equal, by raw scores, or by what is left after each layer's refit; random plans of each.

    python -m benchmarks.allocation FOLDER [--criterion reap_sum --criterion recon] [--fraction 0.5]
        [--windows 64 --randoms 5 --dtype float32]

The demo, scored, allocated and refitted on its calibration text, judged on its test text: the rise of the
mean loss over the unpruned model after the refit, in nats per token, with a bootstrap interval over
documents. Random plans of the same counts get the same refit. FOLDER keeps what was measured: a killed run
goes on.
"""

import argparse
import json
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np

import criteria
import experts
from criteria.budget import BudgetScope
from criteria.scores import Scores
from criteria.text.windows import Windows
from experts.arrays import Array
from experts.model import Model
from experts.plan import Plan
from experts.stored_arrays import StoredArrays
from finetune.allocation.allocate import allocated, cuts_of, grid_of
from finetune.allocation.costs import key_of_cuts, measure_cuts
from finetune.allocation.result import Allocation
from finetune.refit.request import Request
from finetune.refit_losses import RefittedLosses
from validate.draw import random_plans
from validate.statistics import clustered_interval


class Bench:
    """The demo with its texts.

    Attributes:
        options: of the command line
        request: the refit that all plans get
        losses: of held-out windows after it, kept in the folder
    """

    def __init__(self, options: Namespace) -> None:
        self.options = options
        self.model: Model = experts.load("demo", dtype=options.dtype, memory="resident")
        self.request = Request(self._text("calibration")).of_model(self.model)
        path = options.folder / "refitted_losses.csv"
        key = self.request.key_on(self.model.identity)
        self.losses = RefittedLosses(self.model, self.request, self._text("test"), path=path, key=key)

    def _text(self, split: str) -> Windows:
        both = [criteria.Source(stdlib=part, split=split) for part in ("code", "prose")]
        return criteria.windows(self.model, both, sequences=self.options.windows, length=256)

    def plans(self, criterion: str, fraction: float) -> tuple[dict[str, Plan], Allocation]:
        """The three plans of a ranking, and what the last one rests on."""
        found = {}
        for scope in ("layer", "global"):
            scores = self._scores(criterion, fraction, scope)
            found[scope] = criteria.select(scores, fraction=fraction, scope=scope)
        allocation = self._allocation(scores, fraction)
        return {**found, "refitted": allocation.plan}, allocation

    def _scores(self, criterion: str, fraction: float, scope: BudgetScope) -> Scores:
        budget = criteria.budget_for(self.model, fraction=fraction, scope=scope)
        return criteria.score(self.model, criterion, self.request.text, budget=budget)

    def _allocation(self, scores: Scores, fraction: float) -> Allocation:
        budget = criteria.budget_for(self.model, fraction=fraction, scope="global")
        grid = grid_of(scores, budget, self.model)
        cuts = cuts_of(scores, grid)
        key = key_of_cuts(cuts, self.request, self.model.identity)
        stored = StoredArrays(self.options.folder / f"{key}.safetensors", key)
        return allocated(scores, grid, measure_cuts(self.model.anatomy, cuts, self.request, stored))

    def rise(self, plan: Plan) -> Array:
        """Of every held-out window after the refit [N]."""
        self.losses.measure_plans([None, plan], self.model.anatomy, "plan")
        return self.losses.values(plan) - self.losses.values(None)

    def summary(self, plan: Plan, randoms: list[Plan]) -> dict[str, Any]:
        """A plan beside random plans of its counts."""
        rises, weights = self.rise(plan), self.losses.weights
        interval = clustered_interval(rises, weights, self.losses.windows.document, 0)
        others = [float(np.average(self.rise(one), weights=weights)) for one in randoms]
        return {
            "counts": list(plan.counts.values()),
            "after": round(float(np.average(rises, weights=weights)), 4),
            "interval": [round(interval.low, 4), round(interval.high, 4)],
            "random": [round(other, 4) for other in others],
        }

    def difference(self, plan: Plan, other: Plan) -> dict[str, Any]:
        """How much more the first one costs, on the same windows."""
        gap, weights = self.rise(plan) - self.rise(other), self.losses.weights
        interval = clustered_interval(gap, weights, self.losses.windows.document, 0)
        return {
            "mean": round(float(np.average(gap, weights=weights)), 4),
            "interval": [round(interval.low, 4), round(interval.high, 4)],
        }

    def randoms(self, plan: Plan) -> list[Plan]:
        nothing = np.zeros((self.model.shape.num_layers, self.model.shape.num_experts), dtype=bool)
        return random_plans(plan, self.model.shape, nothing, self.options.randoms, seed=0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--criterion", action="append", help="default: reap_sum, recon")
    parser.add_argument("--fraction", action="append", type=float, help="default: 0.5, 0.625")
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--randoms", type=int, default=5)
    parser.add_argument("--dtype", default="auto")
    options = parser.parse_args()
    bench = Bench(options)
    for fraction in options.fraction or [0.5, 0.625]:
        for criterion in options.criterion or ["reap_sum", "recon"]:
            began = time.process_time()
            plans, allocation = bench.plans(criterion, fraction)
            seconds = time.process_time() - began
            bench.losses.measure_plans([None, *plans.values()], bench.model.anatomy, "plans")
            row = {
                "criterion": criterion,
                "fraction": fraction,
                "cpu_seconds_of_ranking_and_counts": round(seconds),
                "expected": [round(allocation.expected_by_scores, 4), round(allocation.expected, 4)],
                "plans": {name: bench.summary(plan, bench.randoms(plan)) for name, plan in plans.items()},
                "global_less_refitted": bench.difference(plans["global"], plans["refitted"]),
                "layer_less_refitted": bench.difference(plans["layer"], plans["refitted"]),
            }
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
