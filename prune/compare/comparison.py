"""`excise compare`: criteria at several budgets on the same rows, each against random plans of its size."""

from collections.abc import Iterator

import numpy as np

from criteria.budget import Budget, BudgetScope, deepest
from criteria.scores import Scores
from criteria.selection import plan_for
from experts.keys import environment
from experts.notes import tell
from experts.plan import Plan
from prune.compare.csv_rows import comparison_csv
from prune.compare.report import markdown
from prune.compare.result import ComparisonResult, OverlapJson, TaskJson
from prune.compare.stability import stabilities
from prune.session.measures import check_rows, measures_of
from prune.session.prepared import Prepared
from prune.session.run_folder import write_json, write_text
from prune.session.session import Session
from validate import pairs
from validate.agreement import agreement, reference_of
from validate.measure import Measure
from validate.null import Contest, evidence_of, with_verdicts
from validate.overlap import overlaps
from validate.rig import check_rig
from validate.statistics import Correction, number
from validate.verdict import PAIR_RULE, RULE


class Comparison:
    """All criteria of a recipe × its budgets. No plan is measured twice, also where two criteria share it."""

    def __init__(self, prepared: Prepared) -> None:
        self.prepared, self.recipe, self.folder = prepared, prepared.recipe, prepared.folder
        self.shape, self.session = prepared.shape, Session(prepared)

    def execute(self) -> ComparisonResult:
        """Write comparison.json, .csv and .md, and the raw rows; return the content of comparison.json."""
        for note in self._notes():
            tell(note)
        self.session.check_texts()
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

    def _compared(self) -> ComparisonResult:
        write_json(self.folder.path / "environment.json", environment())
        for budget in self.prepared.compared:
            self.session.check_room(budget)
        searched = deepest(self.prepared.compared).items()
        tables = {scope: self.session.scores(budget) for scope, budget in searched}
        result = self._result(tables)
        write_json(self.folder.path / "comparison.json", result)
        write_text(self.folder.path / "comparison.csv", comparison_csv(result))
        write_text(self.folder.path / "comparison.md", markdown(result))
        return result

    def _result(self, tables: dict[BudgetScope, list[Scores]]) -> ComparisonResult:
        settings, windows = self.recipe.validation, self.session.texts.validation
        plans = {
            (scores.criterion, budget): plan_for(scores, budget, self.shape)
            for budget in self.prepared.compared
            for scores in tables[budget.scope]
        }
        stability = stabilities(self.session, self.prepared.compared, plans)
        checks = check_rig(self.session.anatomy, windows, next(iter(plans.values())))
        measures = measures_of(self.session)
        contests, seed = self._contests(tables, plans), settings.random_seed
        anatomy = self.session.anatomy
        tested = [evidence_of(one, measures, settings.chance, seed, anatomy) for one in contests]
        evidence = with_verdicts(tested, Correction.HOLM, settings.chance)
        reference = reference_of(next(iter(tables.values())))
        return {
            "overlap": [self._overlap(budget, plans) for budget in self.prepared.compared],
            **stability,
            "agreement": {
                "reference": reference.criterion if reference else None,
                "layers": list(self.shape.layers),
                "spearman": _agreement(tables),
            },
            "plans": [one.to_json() for one in evidence],
            "pairs": [one.to_json() for one in pairs.differences(evidence, measures, settings.random_seed)],
            "scopes": [
                one.to_json() for one in pairs.between_scopes(evidence, measures, settings.random_seed)
            ],
            "rule": _rule(settings.chance, len(evidence)),
            "pair_rule": PAIR_RULE,
            "chance": settings.chance,
            "seed": settings.random_seed,
            "loss": measures[0].mean(measures[0].values(None)),
            "tasks": [_task(measure) for measure in measures[1:]],
            "text": {
                "calibration": self.session.texts.calibration.summary(),
                "validation": windows.summary(),
            },
            "model": self.prepared.model,
            "checks": [check.to_json() for check in checks],
            "notes": self._notes(),
            "run": str(self.folder.path),
        }

    @property
    def _pairs(self) -> int:
        return pairs.count(len(self.prepared.criteria), len(self.prepared.compared))

    def _overlap(self, budget: Budget, plans: dict[tuple[str, Budget], Plan]) -> OverlapJson:
        chosen = [plans[criterion.name, budget] for criterion in self.prepared.criteria]
        matrix = [[number(value) for value in row] for row in overlaps(chosen).tolist()]
        names = [criterion.name for criterion in self.prepared.criteria]
        return {
            "scope": budget.scope,
            "fraction": round(chosen[0].fraction, 6),
            "criteria": names,
            "matrix": matrix,
        }

    def _contests(
        self, tables: dict[BudgetScope, list[Scores]], plans: dict[tuple[str, Budget], Plan]
    ) -> Iterator[Contest]:
        for budget in self.prepared.compared:
            for scores in tables[budget.scope]:
                yield self.session.contest(plans[scores.criterion, budget], scores, budget)


def _rule(chance: str, tests: int) -> str:
    return f"{RULE} p: {chance}, after Holm over {tests} tests (criteria × budgets)."


def _agreement(tables: dict[BudgetScope, list[Scores]]) -> dict[str, list[float | None]]:
    """Rank agreement per criterion; a search, whose scores depend on the scope, appears once per scope."""
    found: dict[str, list[float | None]] = {}
    for scope, table in tables.items():
        for criterion, layers in agreement(table).items():
            if criterion not in found:
                found[criterion] = layers
            elif found[criterion] != layers:
                found[f"{criterion}, scope {scope}"] = layers
    return found


def _task(measure: Measure) -> TaskJson:
    values = measure.sign * measure.values(None)
    return {
        "name": measure.name,
        "metric": measure.metric,
        "items": len(values),
        "full": float(np.mean(values)),
    }
