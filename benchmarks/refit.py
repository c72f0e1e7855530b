"""What the refit gives back, and what it gives to random plans: held-out loss before and after, by domain.

    python -m benchmarks.refit [--fraction 0.5 --criterion reap --randoms 20 --scope layer --windows 64]
        [--elsewhere FILE] [--local] [--scale] [--dtype float32]

The demo, scored and refitted on its calibration text, judged on its test text: the rise of the mean loss over
the unpruned model in nats per token, with a bootstrap interval over documents; p counted among random plans
that got the same refit. lead: by how much the first criterion is worse, window by window, with its interval.
--elsewhere: a text file of another domain, that nothing was fitted to.
--local: every plan is refitted once more, with every layer trained after its least squares ("trained").
--scale: with one factor a layer instead ("scaled").
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
import finetune
from criteria.text.windows import Windows
from experts.arrays import Array
from experts.model import Model
from experts.plan import Plan
from validate.draw import random_plans
from validate.loss import window_losses
from validate.rows import LossEvaluator
from validate.statistics import clustered_interval


class Judge:
    """Rises of the loss on held-out text.

    Attributes:
        model: the unpruned one
        text: N windows
        ways: what a plan gets, by name
        seconds: that it took so far
    """

    def __init__(self, model: Model, text: Windows, ways: dict[str, dict[str, Any]]) -> None:
        self.model, self.text, self.ways = model, text, ways
        self.seconds = dict.fromkeys(ways, 0.0)
        self.weights = LossEvaluator(text).weights
        self.clean = window_losses(model.network, text)

    def rises(self, plan: Plan, calibration: Windows) -> dict[str, Array]:
        """Rise of every window [N] before, and after whatever the plan gets."""
        with experts.restricted(self.model, plan):
            found = {"before": window_losses(self.model.network, self.text) - self.clean}
        for name, options in self.ways.items():
            began = time.process_time()
            refit = finetune.refit_experts(self.model, plan, calibration, **options)
            self.seconds[name] += time.process_time() - began
            with finetune.refitted(self.model, refit):
                found[name] = window_losses(self.model.network, self.text) - self.clean
        return found

    def mean(self, rises: Array) -> float:
        return float(np.average(rises, weights=self.weights))

    def by_domain(self, rises: Array) -> dict[str, float]:
        """Mean rise in every domain of the text."""
        found = {}
        for number, name in enumerate(self.text.domains):
            own = self.text.domain == number
            found[name] = round(float(np.average(rises[own], weights=self.weights[own])), 4)
        return found

    def interval(self, rises: Array) -> list[float]:
        """95 %, over documents."""
        found = clustered_interval(rises, self.weights, self.text.document, 0)
        return [round(found.low, 4), round(found.high, 4)]

    def summary(self, rises: Array, first: Array, randoms: list[Array]) -> dict[str, Any]:
        """Of a plan beside the first one and random plans."""
        delta, others = self.mean(rises), [self.mean(one) for one in randoms]
        found: dict[str, Any] = {
            "delta": round(delta, 4),
            "interval": self.interval(rises),
            "lead": [round(self.mean(first - rises), 4), *self.interval(first - rises)],
            "domains": self.by_domain(rises),
        }
        if len(others) > 1:
            found["random_mean"] = round(float(np.mean(others)), 4)
            found["random_sd"] = round(float(np.std(others, ddof=1)), 4)
            found["p"] = (1 + sum(other <= delta for other in others)) / (1 + len(others))
        return found


def measure(options: Namespace) -> dict[str, Any]:
    """All criteria at one fraction, and the random plans of its sizes."""
    model = experts.load("demo", memory="resident", dtype=options.dtype)
    both = [
        criteria.Source(stdlib="code", split="calibration"),
        criteria.Source(stdlib="prose", split="calibration"),
    ]
    calibration = criteria.windows(model, both, sequences=options.windows, length=256)
    ways: dict[str, dict[str, Any]] = {"after": {}}
    if options.local:
        ways["trained"] = {"local": finetune.Local()}
    if options.scale:
        ways["scaled"] = {"form": "scale"}
    judge = Judge(model, _held_out(model, options), ways)
    plans = {name: _plan(model, name, calibration, options) for name in options.criterion}
    first = next(iter(plans.values()))
    nothing = np.zeros((model.shape.num_layers, model.shape.num_experts), dtype=bool)
    drawn = random_plans(first, model.shape, nothing, options.randoms, seed=0)
    randoms = [judge.rises(plan, calibration) for plan in drawn]
    measured = {name: judge.rises(plan, calibration) for name, plan in plans.items()}
    best = next(iter(measured.values()))
    found = {
        name: {way: judge.summary(own[way], best[way], [one[way] for one in randoms]) for way in own}
        for name, own in measured.items()
    }
    plans_tried = len(drawn) + len(plans)
    seconds = {way: round(spent / plans_tried, 1) for way, spent in judge.seconds.items()}
    return {
        "clean": round(judge.mean(judge.clean), 4),
        "cpu_seconds": seconds,
        "plans": found,
    }


def _held_out(model: Model, options: Namespace) -> Windows:
    if options.elsewhere:
        return criteria.windows(model, options.elsewhere, sequences=options.windows, length=256)
    both = [criteria.Source(stdlib="code", split="test"), criteria.Source(stdlib="prose", split="test")]
    return criteria.windows(model, both, sequences=options.windows, length=256)


def _plan(model: Model, name: str, calibration: Windows, options: Namespace) -> Plan:
    budget = criteria.budget_for(model, fraction=options.fraction, scope=options.scope)
    return criteria.select(criteria.score(model, name, calibration, budget=budget), budget=budget)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fraction", type=float, default=0.5)
    parser.add_argument("--criterion", action="append", help="default: reap, reap_sum")
    parser.add_argument("--scope", choices=["layer", "global"], default="layer")
    parser.add_argument("--randoms", type=int, default=20)
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--dtype", default="auto", help="numbers of the model")
    parser.add_argument("--elsewhere", type=Path)
    parser.add_argument("--local", action="store_true")
    parser.add_argument("--scale", action="store_true")
    options = parser.parse_args()
    options.criterion = options.criterion or ["reap", "reap_sum"]
    print(json.dumps({"benchmark": "refit", **vars(options), **measure(options)}, indent=2, default=str))


if __name__ == "__main__":
    main()
