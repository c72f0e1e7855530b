"""`excise compare`: criteria at several budgets on the same rows, each against random plans of its size."""

import numpy as np

from criteria.budget import Budget, BudgetScope, deepest
from criteria.scores import Scores
from experts.keys import environment
from experts.notes import tell
from experts.plan import Plan
from prune.compare.csv_rows import comparison_csv
from prune.compare.report import markdown
from prune.compare.result import (
    AgreementJson,
    ComparisonResult,
    DifferencesJson,
    OverlapJson,
    TaskJson,
)
from prune.compare.searches import scores_of, search_notes
from prune.compare.stability import stabilities
from prune.session.allocations import Allocations
from prune.session.domain_verdicts import domain_notes
from prune.session.measures import check_rows, measures_of
from prune.session.prepared import Prepared
from prune.session.refits import Refits, check_refit, forget_refits, settled
from prune.session.run_folder import write_json, write_text
from prune.session.session import Session
from validate import pairs
from validate.agreement import agreement, reference_of
from validate.chance import Judgement, plans_against_random
from validate.evidence import Evidence, Judged
from validate.measure import Measure
from validate.overlap import overlaps
from validate.refitted import with_refit
from validate.statistics import Correction, number
from validate.verdict import DOMAIN_RULE, PAIR_RULE, RULE

Tables = dict[BudgetScope, list[Scores]]  # scope -> scores of every criterion
Plans = dict[tuple[str, Budget], Plan]  # by criterion and budget


class ComparisonRun:
    """All criteria of a recipe × its budgets. No plan is measured twice, also where two criteria share it."""

    def __init__(self, prepared: Prepared) -> None:
        self.folder, self.shape = prepared.folder, prepared.shape
        self._use(Session(prepared))

    def _use(self, session: Session) -> None:
        """Work with this session; its recipe may have lost what its model cannot have."""
        self.session, self.prepared, self.recipe = session, session.prepared, session.recipe

    def execute(self) -> ComparisonResult:
        """Write comparison.json, .csv and .md, and the raw rows; return the content of comparison.json."""
        for note in self._notes():
            tell(note)
        self.session.check_texts()
        check_rows(self.session, self._pairs)
        if self.recipe.refit and not self.recipe.refit.if_possible:
            check_refit(self.session)
        with self.folder.held():
            self._use(settled(self.session))
            return self._compared()

    def _notes(self) -> list[str]:
        """What a reader has to know of the budgets."""
        found = [*self.prepared.merged, *self.session.protection_notes(), *domain_notes(self.prepared)]
        asked = {one.name: one.measurement.values for one in self.prepared.criteria if one.measurement}
        by_rounds = [name for name, values in asked.items() if values.get("rounds")]
        if by_rounds and len(self.prepared.compared) > len(deepest(self.prepared.compared)):
            what = "rounds count down to the smallest budget of a scope"
            found.append(f"{', '.join(by_rounds)}: {what}; the plans of larger ones are met on the way")
        return [*found, *search_notes(self.prepared.criteria, self.prepared.compared)]

    def _compared(self) -> ComparisonResult:
        write_json(self.folder.path / "environment.json", environment())
        if self.recipe.refit is None:
            forget_refits(self.folder.path)
        for budget in self.prepared.compared:
            self.session.check_room(budget)
        searched = deepest(self.prepared.compared).items()
        tables = {scope: scores_of(self.session, budget) for scope, budget in searched}
        result = self._result(tables)
        write_json(self.folder.path / "comparison.json", result)
        write_text(self.folder.path / "comparison.csv", comparison_csv(result))
        write_text(self.folder.path / "comparison.md", markdown(result))
        return result

    def _result(self, tables: Tables) -> ComparisonResult:
        settings, texts = self.recipe.validation, self.session.texts
        allocations = Allocations(self.session)
        plans = self._plans(tables, allocations)
        stability = stabilities(self.session, self.prepared.compared, plans)
        measures = measures_of(self.session)
        after = Refits(self.session).measures() if self.recipe.refit else []
        judgement = self._judgement(measures, list(plans.values()), after)
        evidence = judgement.evidence
        return {
            "overlap": [self._overlap(budget, plans) for budget in self.prepared.compared],
            **stability,
            "allocations": allocations.write(),
            "agreement": self._agreement(tables),
            "plans": with_refit(judgement, measures[0], after, settings.random_seed),
            **self._differences(evidence, measures),
            "refit": self._differences(judgement.later, after) if after else None,
            "rule": _rule(settings.chance, evidence),
            "pair_rule": PAIR_RULE,
            "chance": settings.chance,
            "seed": settings.random_seed,
            "loss": measures[0].mean(measures[0].values(None)),
            "tasks": [_task(measure) for measure in measures[1:]],
            "text": {"calibration": texts.calibration.summary(), "validation": texts.validation.summary()},
            "model": self.prepared.model,
            "checks": [check.to_json() for check in judgement.checks],
            "notes": self._notes(),
            "run": str(self.folder.path),
        }

    def _plans(self, tables: Tables, allocations: Allocations) -> Plans:
        """The plan of every criterion at every budget."""
        plans: Plans = {}
        for budget in self.prepared.compared:
            for scores in tables[budget.scope]:
                plans[scores.criterion, budget] = allocations.plan(scores, budget)
        return plans

    def _judgement(self, measures: list[Measure], plans: list[Plan], after: list[Measure]) -> Judgement:
        """Every plan against random plans, with verdicts after Holm over all of them."""
        settings = self.recipe.validation
        return plans_against_random(
            self.session.model,
            plans,
            self.session.texts.validation,
            measures,
            plans=settings.random_plans,
            seed=settings.random_seed,
            null=settings.chance,
            correction=Correction.HOLM,
            later=after,
        )

    def _differences(self, evidence: list[Evidence[Judged]], measures: list[Measure]) -> DifferencesJson:
        """Criteria against each other, and each against itself in the other scope."""
        seed = self.recipe.validation.random_seed
        of_criteria = pairs.differences(evidence, measures, seed)
        of_scopes = pairs.between_scopes(evidence, measures, seed)
        return {
            "pairs": [difference.to_json() for difference in of_criteria],
            "scopes": [difference.to_json() for difference in of_scopes],
        }

    def _agreement(self, tables: Tables) -> AgreementJson:
        """Rank agreement with the measured removals, where these are among the criteria."""
        reference = reference_of(next(iter(tables.values())))
        return {
            "reference": reference.criterion if reference else None,
            "layers": list(self.shape.layers),
            "spearman": _spearman(tables),
        }

    @property
    def _pairs(self) -> int:
        return pairs.count(len(self.prepared.criteria), len(self.prepared.compared))

    def _overlap(self, budget: Budget, plans: Plans) -> OverlapJson:
        chosen = [plans[criterion.name, budget] for criterion in self.prepared.criteria]
        matrix = [[number(value) for value in row] for row in overlaps(chosen).tolist()]
        names = [criterion.name for criterion in self.prepared.criteria]
        return {
            "scope": budget.scope,
            "fraction": round(chosen[0].fraction, 6),
            "criteria": names,
            "matrix": matrix,
        }


def _rule(chance: str, evidence: list[Evidence[Judged]]) -> str:
    rule = f"{RULE} p: {chance}, after Holm over {len(evidence)} tests (criteria × budgets)."
    return f"{rule} {DOMAIN_RULE}" if evidence[0].domains else rule


def _spearman(tables: Tables) -> dict[str, list[float | None]]:
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
