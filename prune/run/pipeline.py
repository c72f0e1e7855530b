"""`excise prune`: calibrate → rank → test against chance → write → reload.

A stage whose inputs are unchanged is not run again.
"""

from dataclasses import dataclass

from criteria.budget import Budget, BudgetScope
from criteria.scores import Scores, save
from experts.errors import ExciseError
from experts.notes import tell
from experts.plan import Plan
from experts.units import human, parse_size
from prune.checkpoint.rehearsal import check_reload, trial_plans
from prune.checkpoint.slices import pruned_size
from prune.checkpoint.write import export_notes
from prune.recover.recovery import Recovery
from prune.recover.targets import check_targets
from prune.run.plan_tests import Candidate, PlanTests
from prune.run.pruned_folder import Pending, PrunedFolder
from prune.run.recipe_record import keep_recipe
from prune.run.report import markdown
from prune.run.result import PruneResult
from prune.session.allocations import Allocations
from prune.session.domain_verdicts import domain_notes
from prune.session.measures import check_rows
from prune.session.prepared import Prepared
from prune.session.refits import check_refit, forget_refits, settled, without_refit
from prune.session.refusals import check_pruning
from prune.session.run_folder import CHECKPOINT, write_json, write_text
from prune.session.session import Session
from validate.verdict import Verdict

SEVERITY: dict[Verdict, int] = {"beats random": 0, "not distinguishable": 1, "worse than random": 2}


@dataclass(frozen=True)
class RunResult:
    """What a run returns.

    Attributes:
        result: content of validation.json, and where things are
        stopped: whether the recipe asked to stop on this verdict
    """

    result: PruneResult
    stopped: bool


class Run:
    """A prepared recipe, stage by stage. The model is loaded only when a stage really needs it."""

    def __init__(self, prepared: Prepared) -> None:
        self.prepared, self.recipe, self.folder = prepared, prepared.recipe, prepared.folder
        self.layout, self.shape = prepared.layout, prepared.shape
        self._use(Session(prepared))

    def _use(self, session: Session) -> None:
        """Work with this session; its recipe may have lost what its model cannot have."""
        self.session, self.prepared, self.recipe = session, session.prepared, session.recipe
        self.pruned = PrunedFolder(session, self.folder.path / CHECKPOINT)

    @property
    def budget(self) -> Budget:
        """The budget of the plan that is written."""
        return self.prepared.budgets[self.recipe.prune.scope]

    @property
    def scopes(self) -> list[BudgetScope]:
        """Those the first criterion is tested in; a search belongs to one, and says nothing in another."""
        return self.prepared.scopes[:1] if self.prepared.criteria[0].searches else self.prepared.scopes

    def execute(self) -> RunResult:
        """All stages, in order."""
        notes = self._notes()
        for note in notes:  # now, not after an hour of calibration
            tell(note)
        self._check()
        with self.folder.held():
            self._use(settled(self.session))
            return self._stages(notes)

    def _notes(self) -> list[str]:
        """What can be said before the work."""
        notes = [*self.budget.notes(self.shape.num_layers), *self.session.protection_notes()]
        notes += domain_notes(self.prepared)
        if self.scopes != self.prepared.scopes:
            notes.append(
                f"{self.recipe.criteria[0]} searches in scope {self.recipe.prune.scope} alone, "
                "so no other scope is shown beside it; "
                "`excise compare` with compare.scopes=[layer, global] searches in both"
            )
        return notes

    def _check(self) -> None:
        """Texts, tasks and names that cannot be used are refused before the work."""
        self.pruned.check_model()
        plans, trust = trial_plans(self.shape, self.budget), self.recipe.trust_remote_code
        check_reload(self.layout, plans, trust, dequantise=self.prepared.dequantises)
        if self.recipe.finetune:
            check_pruning(self.recipe)
        self.session.check_texts(training=self.recipe.finetune is not None)
        check_rows(self.session)
        if self.recipe.finetune:
            check_targets(self.session)
        if self.recipe.refit:
            self._check_refit(self.recipe.refit.if_possible)

    def _check_refit(self, if_possible: bool) -> None:
        try:
            check_refit(self.session)
        except ExciseError as refusal:
            if not if_possible:
                raise
            self._use(without_refit(self.session, str(refusal)))

    def _stages(self, notes: list[str]) -> RunResult:
        keep_recipe(self.prepared)
        if self.recipe.refit is None:
            forget_refits(self.folder.path)
        table = self._ranked()
        allocations = Allocations(self.session)
        candidates = self._candidates(table, allocations)
        plan = candidates[0].plan
        self._check_size(plan)
        self.pruned.check_plan(plan)
        write_json(self.folder.path / "plan.json", plan.to_json())
        result: PruneResult = {
            **PlanTests(self.session, candidates, allocations.write()).execute(),
            "run": str(self.folder.path),
            "checkpoint": None,
            "notes": notes,
            "recovery": None,
        }
        written = result["plans"][0]
        if self._stops((written["refit"] or written)["verdict"]):  # of the model that would be written
            self._report(result)
            return RunResult(result, stopped=True)
        self._write(plan, result)
        return RunResult(result, stopped=False)

    def _ranked(self) -> list[Scores]:
        """Scores of every criterion of the recipe, saved in scores.safetensors."""
        for scope in self.scopes:
            self.session.check_room(self.prepared.budgets[scope])
        table = self.session.scores(self.budget)
        save(self.folder.path / "scores.safetensors", table)
        return table

    def _candidates(self, table: list[Scores], allocations: Allocations) -> list[Candidate]:
        """The plans that are tested: the first criterion's in all its scopes, the others' in the recipe's."""
        candidates = []
        for number, scores in enumerate(table):
            for scope in self.scopes if number == 0 else self.scopes[:1]:
                budget = self.prepared.budgets[scope]
                candidates.append(Candidate(scores, allocations.plan(scores, budget)))
        return candidates

    def _write(self, plan: Plan, result: PruneResult) -> None:
        """Export, recover where the recipe says so, and prove what was written.

        The proof comes last: it takes the pruned model into the place of the whole one, which recovery still
        needs.
        """
        pending = self.pruned.write(self.recipe, plan, result)
        result["checkpoint"] = str(self.pruned.path)
        told = result["notes"]
        result["notes"] = list(dict.fromkeys([*told, *export_notes(self.layout, plan)]))
        for note in result["notes"][len(told) :]:
            tell(note)
        if self.recipe.finetune is None:
            self._prove(plan, pending)
            self._report(result)
            return
        self._report(result)
        try:
            result["recovery"] = Recovery(self.session, plan, self.pruned.path).execute()
        except ExciseError:
            self._prove(plan, pending)
            raise
        self._prove(plan, pending)

    def _prove(self, plan: Plan, pending: Pending | None) -> None:
        if pending is not None:
            self.pruned.prove(plan, pending)

    def _report(self, result: PruneResult) -> None:
        write_text(self.folder.path / "report.md", markdown(self.recipe, result))

    def _check_size(self, plan: Plan) -> None:
        """The last look at a promise that was made before the scores were known."""
        size = pruned_size(self.layout, plan, dequantise=self.prepared.dequantises)
        target = self.recipe.prune.target_size
        if target is not None and size > parse_size(target):
            raise ExciseError(
                f"prune.target_size is {target}, and the plan leaves {human(size)}; please report it"
            )

    def _stops(self, verdict: Verdict) -> bool:
        stop_on = self.recipe.validation.stop_on
        return stop_on is not None and SEVERITY[verdict] >= SEVERITY[stop_on]
