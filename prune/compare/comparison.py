"""`excise compare`: several criteria at several budgets, on the same held-out windows and items, each against random plans of its sizes."""

import csv
import io
from collections.abc import Iterator
from typing import Any

import numpy as np

from criteria.budget import Budget, Scope, deepest
from criteria.scores import Scores
from criteria.selection import check_protected, select
from experts.notes import tell
from experts.plan import Plan
from prune.compare.report import markdown
from prune.compare.stability import stabilities
from prune.session.measures import check_rows, measures_of
from prune.session.prepare import Prepared
from prune.session.run_folder import describe, environment, write_json, write_text
from prune.session.session import Session
from validate import pairs
from validate.agreement import agreement, reference_of
from validate.null import Contest, Measure, against_random, with_verdicts
from validate.overlap import overlaps
from validate.rig import check_rig
from validate.statistics import Correction, number
from validate.verdict import PAIR_RULE, RULE

COLUMNS = (
    "criterion",
    "scope",
    "fraction",
    "measure",
    "value",
    "delta",
    "delta_low",
    "delta_high",
    "random_mean",
    "random_sd",
    "reversed_delta",
    "p",
    "p_worse",
    "p_corrected",
    "p_worse_corrected",
    "low",
    "high",
    "verdict",
    "verdict_equal_counts",
    "smallest_detectable",
    "effect",
    "clusters",
    "p_full",
    "ends_alike",
    "stability",
)


class Comparison:
    """All criteria of a recipe × its budgets. Plans that were measured before, also by other criteria, are not measured again."""

    def __init__(self, prepared: Prepared) -> None:
        self.prepared, self.recipe, self.folder = prepared, prepared.recipe, prepared.folder
        self.shape, self.session = prepared.shape, Session(prepared)

    def execute(self) -> dict[str, Any]:
        """Writes comparison.json, comparison.csv, comparison.md and the raw rows; gives the content of comparison.json."""
        for note in self._notes():
            tell(note)
        self.session.read()
        check_rows(self.session, self._pairs)
        with self.folder.held():
            return self._compared()

    def _notes(self) -> list[str]:
        """What a reader has to know of the budgets."""
        found = [*self.prepared.merged, *self.session.protection_notes()]
        asked = {one.name: one.measurement.values for one in self.prepared.criteria if one.measurement}
        by_rounds = [name for name, values in asked.items() if values.get("rounds")]
        if by_rounds and len(self.prepared.compared) > len(deepest(self.prepared.compared)):
            what = "rounds count down to the smallest budget of a scope"
            found.append(f"{', '.join(by_rounds)}: {what}; the plans of larger ones are met on the way")
        return found

    def _compared(self) -> dict[str, Any]:
        write_json(self.folder.path / "environment.json", environment())
        observed = self.session.calibrate()
        for budget in self.prepared.compared:
            check_protected(self.session.protected(observed), budget, self.shape)
        searched = deepest(self.prepared.compared).items()
        measured = {scope: self.session.measured(observed, budget) for scope, budget in searched}
        tables = {scope: self.session.rank(statistics) for scope, statistics in measured.items()}
        result = self._result(tables)
        write_json(self.folder.path / "comparison.json", result)
        write_text(self.folder.path / "comparison.csv", _csv(result))
        write_text(self.folder.path / "comparison.md", markdown(result))
        return result

    def _result(self, tables: dict[Scope, list[Scores]]) -> dict[str, Any]:
        settings, windows = self.recipe.validation, self.session.validation
        plans = {
            (scores.criterion, budget): select(scores, budget, self.shape)
            for budget in self.prepared.compared
            for scores in tables[budget.scope]
        }
        checks = check_rig(self.session.anatomy, windows, next(iter(plans.values())))
        measures = measures_of(self.session)
        tests, seed = self._tests(tables), settings.random_seed
        anatomy = self.session.anatomy
        tested = [against_random(test, measures, settings.chance, seed, anatomy) for test in tests]
        evidence = with_verdicts(tested, Correction.HOLM, settings.chance)
        reference = reference_of(next(iter(tables.values())))
        return {
            "overlap": [self._overlap(budget, plans) for budget in self.prepared.compared],
            **stabilities(self.session, self.prepared.compared, plans),
            "agreement": {
                "reference": reference and reference.criterion,
                "layers": list(self.shape.layers),
                "spearman": _agreement(tables),
            },
            "plans": [one.to_json() for one in evidence],
            "pairs": [one.to_json() for one in pairs.differences(evidence, measures, settings.random_seed)],
            "scopes": [
                one.to_json() for one in pairs.between_scopes(evidence, measures, settings.random_seed)
            ],
            "rule": f"{RULE} p: {settings.chance}, after Holm over {len(evidence)} tests (criteria × budgets).",
            "pair_rule": PAIR_RULE,
            "chance": settings.chance,
            "seed": settings.random_seed,
            "loss": measures[0].mean(measures[0].values(None)),
            "tasks": [_task(measure) for measure in measures[1:]],
            "text": {"calibration": describe(self.session.calibration), "validation": describe(windows)},
            "model": self.prepared.model,
            "checks": [check.to_json() for check in checks],
            "notes": self._notes(),
            "run": str(self.folder.path),
        }

    @property
    def _pairs(self) -> int:
        return pairs.count(len(self.prepared.criteria), len(self.prepared.compared))

    def _overlap(self, budget: Budget, plans: dict[tuple[str, Budget], Plan]) -> dict[str, Any]:
        chosen = [plans[criterion.name, budget] for criterion in self.prepared.criteria]
        matrix = [[number(value) for value in row] for row in overlaps(chosen).tolist()]
        names = [criterion.name for criterion in self.prepared.criteria]
        return {
            "scope": budget.scope,
            "fraction": round(chosen[0].fraction, 6),
            "criteria": names,
            "matrix": matrix,
        }

    def _tests(self, tables: dict[Scope, list[Scores]]) -> Iterator[Contest]:
        for budget in self.prepared.compared:
            for criterion, scores in zip(self.prepared.criteria, tables[budget.scope], strict=True):
                yield self.session.contest(criterion, scores, budget)


def _agreement(tables: dict[Scope, list[Scores]]) -> dict[str, list[float | None]]:
    """Rank agreement per criterion; one whose scores depend on the scope (greedy removal) appears once a scope."""
    found: dict[str, list[float | None]] = {}
    for scope, table in tables.items():
        for criterion, layers in agreement(table).items():
            if criterion not in found:
                found[criterion] = layers
            elif found[criterion] != layers:
                found[f"{criterion}, scope {scope}"] = layers
    return found


def _task(measure: Measure) -> dict[str, Any]:
    values = measure.sign * measure.values(None)
    return {
        "name": measure.name,
        "metric": measure.metric,
        "items": len(values),
        "full": float(np.mean(values)),
    }


def rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """One flat row per criterion, budget and measure, in the columns of comparison.csv."""
    stable = {(row["criterion"], row["scope"], row["fraction"]): row["mean"] for row in result["stability"]}
    found = []
    for plan in result["plans"]:
        loss = {**plan, "name": "loss", "value": result["loss"] + plan["delta"]}
        found += [
            _row(plan, cost, stable[plan["criterion"], plan["scope"], plan["fraction"]])
            for cost in (loss, *plan["tasks"])
        ]
    return found


def _row(plan: dict[str, Any], cost: dict[str, Any], stable: float | None) -> dict[str, Any]:
    there = {name: cost[name] for name in COLUMNS if name in cost}
    ends = {"delta_low": cost["delta_interval"][0], "delta_high": cost["delta_interval"][1]}
    low, high = cost["interval"]
    chance = {
        "random_mean": cost["random"]["mean"],
        "random_sd": cost["random"]["sd"],
        "low": low,
        "high": high,
    }
    equal = cost["equal_counts"] and cost["equal_counts"]["verdict"]
    budget = {name: plan[name] for name in ("criterion", "scope", "fraction")}
    return {
        **there,
        **budget,
        "measure": cost["name"],
        **ends,
        **chance,
        "verdict_equal_counts": equal,
        "stability": stable,
    }


def _csv(result: dict[str, Any]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows(result))
    return text.getvalue()
