"""`excise compare`: several criteria at several budgets, on the same held-out windows, each against random plans of its own sizes."""

import csv
import io
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np

from criteria.budget import Budget
from criteria.scores import Scores
from criteria.select import select
from criteria.statistics import Statistics
from prune.materials import Materials
from prune.prepare import Prepared
from prune.run import describe, row_key
from prune.stages import environment, write_json, write_text
from validate.agreement import agreement, reference_of
from validate.null import Contest, against_random
from validate.rig import check_rig
from validate.rows import Evaluator
from validate.verdict import RULE

COLUMNS = (
    "criterion",
    "scope",
    "fraction",
    "delta",
    "random_mean",
    "random_sd",
    "reversed_delta",
    "p",
    "p_worse",
    "low",
    "high",
    "verdict",
)


class Comparison:
    """All criteria of a recipe × its budgets. Plans that were measured before, also by other criteria, are not measured again."""

    def __init__(self, prepared: Prepared) -> None:
        self.prepared, self.recipe, self.folder = prepared, prepared.recipe, prepared.folder
        self.shape, self.materials = prepared.shape, Materials(prepared)

    def execute(self) -> dict[str, Any]:
        """Writes comparison.json, comparison.csv and the raw rows; gives the content of comparison.json."""
        _ = self.materials.windows  # text that cannot be used is refused before anything is written
        with self.folder.held():
            write_json(self.folder.path / "environment.json", environment())
            observed = self.materials.calibrate()
            measured = {scope: self.materials.measured(observed, budget) for scope, budget in self._deepest().items()}
            tables = {scope: self.materials.rank(statistics) for scope, statistics in measured.items()}
            result = self._result(measured, tables)
            write_json(self.folder.path / "comparison.json", result)
            write_text(self.folder.path / "comparison.csv", _csv(result))
            return result

    def _deepest(self) -> dict[str, Budget]:
        """The budget of every scope that removes most: a search goes down to it, and the others are met on the way."""
        found: dict[str, Budget] = {}
        for budget in self.prepared.compared:
            if budget.scope not in found or budget.total < found[budget.scope].total:
                found[budget.scope] = budget
        return found

    def _result(self, measured: dict[str, Statistics], tables: dict[str, list[Scores]]) -> dict[str, Any]:
        settings, windows, anatomy = self.recipe.validation, self.materials.validation, self.materials.anatomy
        first = self.prepared.compared[0]
        checks = check_rig(anatomy, windows, select(tables[first.scope][0], first, self.shape))
        evaluator = Evaluator(anatomy, windows, self.folder.path / "losses.csv", row_key(self.materials), settings.batch)
        tests = list(self._tests(measured, tables))
        plans = [against_random(evaluator, test, settings.random_seed).to_json() for test in tests]
        reference = reference_of(next(iter(tables.values())))
        return {
            "plans": plans,
            "rule": RULE,
            "loss": float(np.average(evaluator.losses(None), weights=evaluator.weights)),
            "agreement": {
                "reference": reference and reference.criterion,
                "layers": list(self.shape.layers),
                "spearman": _agreement(tables),
            },
            "text": {"calibration": describe(self.materials.calibration), "validation": describe(windows)},
            "model": {"name": self.recipe.model, "fingerprint": self.prepared.fingerprint},
            "checks": [asdict(check) for check in checks],
            "run": str(self.folder.path),
        }

    def _tests(self, measured: dict[str, Statistics], tables: dict[str, list[Scores]]) -> Iterator[Contest]:
        for budget in self.prepared.compared:
            for criterion, scores in zip(self.prepared.criteria, tables[budget.scope], strict=True):
                yield self.materials.contest(criterion, scores, measured[budget.scope], budget)


def _agreement(tables: dict[str, list[Scores]]) -> dict[str, list[float | None]]:
    """Rank agreement per criterion; one whose scores depend on the scope (greedy removal) appears once a scope."""
    found: dict[str, list[float | None]] = {}
    for scope, table in tables.items():
        for criterion, layers in agreement(table).items():
            if criterion not in found:
                found[criterion] = layers
            elif found[criterion] != layers:
                found[f"{criterion}, scope {scope}"] = layers
    return found


def rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """One flat row per criterion and budget, in the columns of comparison.csv."""
    return [
        {
            **{name: plan[name] for name in ("criterion", "scope", "fraction", "delta", "reversed_delta", "p", "p_worse", "verdict")},
            "random_mean": plan["random"]["mean"],
            "random_sd": plan["random"]["sd"],
            "low": plan["interval"][0],
            "high": plan["interval"][1],
        }
        for plan in result["plans"]
    ]


def _csv(result: dict[str, Any]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows(result))
    return text.getvalue()
