"""`excise prune`: calibrate → rank → test against chance → write → reload. Every stage is resumed when its inputs are unchanged."""

import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from criteria.budget import Budget, Scope
from criteria.scores import Scores, save
from criteria.selection import check_protected, select
from criteria.statistics import Statistics
from criteria.text.windows import Windows
from experts.ablation import restricted
from experts.disk.companions import PLAN
from experts.disk.shards import open_checkpoint
from experts.errors import ExciseError
from experts.notes import tell
from experts.plan import Plan
from experts.units import human, parse_size
from prune.checkpoint.card import model_card
from prune.checkpoint.rehearsal import check_reload, trial_plans
from prune.checkpoint.slices import removed_bytes
from prune.checkpoint.write import export, export_notes
from prune.recover.recovery import Recovery, check_targets
from prune.run.report import markdown
from prune.session.measures import check_rows, measures_of, row_key
from prune.session.prepare import Prepared, check_pruning
from prune.session.run_folder import CHECKPOINT, describe, environment, key_of, write_json, write_text
from prune.session.session import Session
from validate.agreement import agreement
from validate.null import Contest, against_random, with_verdicts
from validate.rig import check_reloaded, check_rig, last_logits, require
from validate.statistics import Correction
from validate.verdict import RULE, Verdict

RECIPE = "recipe.yaml"
SEVERITY: dict[Verdict, int] = {"beats random": 0, "not distinguishable": 1, "worse than random": 2}


@dataclass(frozen=True)
class RunResult:
    """What a run gives back: the content of validation.json, and where things are. stopped: the recipe asked to stop on this verdict."""

    result: dict[str, Any]
    stopped: bool


class Run:
    """A prepared recipe, stage by stage. The model is loaded only when a stage really needs it."""

    def __init__(self, prepared: Prepared) -> None:
        self.prepared, self.recipe, self.folder = prepared, prepared.recipe, prepared.folder
        self.layout, self.shape, self.fingerprint = prepared.layout, prepared.shape, prepared.fingerprint
        self.session = Session(prepared)

    @property
    def plan_budget(self) -> Budget:
        """The budget of the plan that is written."""
        return self.prepared.budgets[self.recipe.prune.scope]

    @property
    def scopes(self) -> list[Scope]:
        """Those the first criterion is tested in. A search belongs to one: its order says nothing in another."""
        return self.prepared.scopes[:1] if self.prepared.criteria[0].searches else self.prepared.scopes

    def _notes(self) -> list[str]:
        """What can be said before the work."""
        found = [*self.plan_budget.notes(len(self.shape.layers)), *self.session.protection_notes()]
        if self.scopes != self.prepared.scopes:
            found.append(
                f"{self.recipe.criteria[0]} searches in scope {self.recipe.prune.scope} alone, so no other scope "
                "is shown beside it; `excise compare` with compare.scopes=[layer, global] searches in both"
            )
        return found

    # Stages.

    def rank(self, statistics: Statistics) -> list[Scores]:
        """Scores of every criterion of the recipe, saved in scores.safetensors."""
        table = self.session.rank(statistics)
        save(self.folder.path / "scores.safetensors", table)
        return table

    def validate(self, statistics: Statistics, table: list[Scores]) -> dict[str, Any]:
        """Every criterion's plan, its reverse and the random plans on held-out text; the rig is checked first."""
        settings = self.recipe.validation
        key = row_key(self.session)
        plan = select(table[0], self.plan_budget, self.shape)
        # The scores themselves: a user's criterion can change behind an unchanged name.
        asked = self.session.asked if settings.tasks else ""
        inputs = (
            [scores.digest for scores in table],
            self.recipe.model_dump(mode="json", exclude={"finetune"}),
            self.session.calibration.hash,
            asked,
        )
        stage = key_of("validate", key, *inputs)
        if kept := self.folder.kept("validate", stage, "validation.json"):
            return kept
        checks = check_rig(self.session.anatomy, self.session.validation, plan)
        measures = measures_of(self.session)
        tests, seed = self._tests(table), settings.random_seed
        anatomy = self.session.anatomy
        tested = [against_random(test, measures, settings.chance, seed, anatomy) for test in tests]
        evidence = [
            {**one.to_json(), "size": self.layout.checkpoint.size - removed_bytes(self.layout, one.plan)}
            for one in with_verdicts(tested, Correction.NONE, settings.chance)
        ]
        result: dict[str, Any] = {
            "plans": evidence,
            "rule": f"{RULE} Not corrected for the number of criteria.",
            "checks": [check.to_json() for check in checks],
            "loss": measures[0].mean(measures[0].values(None)),
            "chance": settings.chance,
            "text": {
                "calibration": describe(self.session.calibration),
                "validation": describe(self.session.validation),
            },
            "shared_documents": _shared(self.session.calibration, self.session.validation),
            "model": self.prepared.model,
            "size": {"before": self.layout.checkpoint.size, "removed": removed_bytes(self.layout, plan)},
            "agreement": agreement(table),
            "without_data": int(statistics.unreached.sum()),
            "protected": int(table[0].protected.sum()),
        }
        self.folder.begin("validate")
        write_json(self.folder.path / "validation.json", result)
        self.folder.finish("validate", stage)
        return result

    def _tests(self, table: list[Scores]) -> Iterator[Contest]:
        """The first criterion is tested in all its scopes, the others in the recipe's."""
        for number, (criterion, scores) in enumerate(zip(self.prepared.criteria, table, strict=True)):
            for scope in self.scopes if number == 0 else self.scopes[:1]:
                yield self.session.contest(criterion, scores, self.prepared.budgets[scope])

    def write(self, plan: Plan, result: dict[str, Any]) -> Path:
        """Exports the checkpoint, then loads it and compares its logits with the restricted model's, bit by bit."""
        out = self.folder.path / CHECKPOINT
        stage = key_of("export", self.fingerprint, plan.digest)
        card = model_card(self.recipe, self.layout, plan, result)
        intact = self._intact(out, plan)
        if intact and self.folder.valid("export", stage):
            write_text(out / "README.md", card)
            return out
        with restricted(self.session.anatomy, plan):
            expected = last_logits(self.session.anatomy, self.session.validation)
        self.session.unload()  # the pruned model takes the place of the whole one: never both in memory
        if not intact:
            damaged = out.exists() and self.folder.valid(
                "export", stage
            )  # this very checkpoint, but no longer whole
            export(self.layout, plan, out, card, self.prepared.force or damaged, self.fingerprint)
        try:
            require([check_reloaded(expected, self.session.reloaded_logits(out, plan, expected.device))])
        except BaseException:
            shutil.rmtree(out)  # unproven, so not left behind
            raise
        self.folder.finish("export", stage)
        return out

    def _intact(self, out: Path, plan: Plan) -> bool:
        """Whether `out` holds this plan's checkpoint, every tensor in its place; its last check may still be missing."""
        with suppress(ExciseError):
            size = self.layout.checkpoint.size - removed_bytes(self.layout, plan)
            return Plan.read(out / PLAN) == plan and open_checkpoint(out).size == size
        return False

    def execute(self) -> RunResult:
        """All stages, in order."""
        before = self._notes()
        for note in before:  # now, not after an hour of calibration
            tell(note)
        self._check()
        with self.folder.held():
            return self._stages(before)

    def _check(self) -> None:
        """Texts, tasks and names that cannot be used are refused before the work."""
        self._check_written()
        check_reload(self.layout, trial_plans(self.shape, self.plan_budget), self.recipe.trust_remote_code)
        self.session.read()
        check_rows(self.session)
        if self.recipe.finetune:
            check_pruning(self.recipe)
            _ = self.session.training  # refused before the work
            check_targets(self.session)

    def _stages(self, notes: list[str]) -> RunResult:
        self._keep_recipe()
        observed = self.session.calibrate()
        for scope in self.scopes:
            check_protected(self.session.protected(observed), self.prepared.budgets[scope], self.shape)
        statistics = self.session.measured(observed, self.plan_budget)
        table = self.rank(statistics)
        plan = select(table[0], self.plan_budget, self.shape)
        self._check_size(plan)
        self._check_written(plan)
        write_json(self.folder.path / "plan.json", plan.to_json())
        run = str(self.folder.path)
        places: dict[str, Any] = {"run": run, "checkpoint": None, "notes": notes, "recovery": None}
        result = {**self.validate(statistics, table), **places}
        stopped = self._stops(result["plans"][0]["verdict"])
        if not stopped:
            result["checkpoint"] = str(self.write(plan, result))
            result["notes"] = list(dict.fromkeys([*notes, *export_notes(self.layout, plan)]))
            for note in result["notes"]:  # those that were not told before
                tell(note)
        write_text(self.folder.path / "report.md", markdown(self.recipe, result))
        if self.recipe.finetune and not stopped:
            protected = self.session.protected(statistics)
            healing = Recovery(self.session, plan, protected, self.folder.path / CHECKPOINT)
            result["recovery"] = healing.execute()
        return RunResult(result, stopped)

    def _check_written(self, plan: Plan | None = None) -> None:
        """Refuses a folder whose checkpoint is another model's, before any work; or another plan's, before the tests."""
        out = self.folder.path / CHECKPOINT
        if self.prepared.force or not (out / PLAN).is_file():
            return
        try:
            before = Plan.read(out / PLAN)
        except ExciseError:
            return  # damaged: the export says what is to be done
        way = "choose another --output, or --force to replace it"
        if before.model and before.model != self.fingerprint:
            told = f"(fingerprint {before.model}, this one has {self.fingerprint})"
            raise ExciseError(f"{out}: was made of another model {told}; {way}")
        if plan is not None and before.digest != plan.digest:
            why = "texts or criteria have changed since it was made"
            raise ExciseError(f"{out}: keeps other experts than this run would: {why}; {way}")

    def _check_size(self, plan: Plan) -> None:
        """The last look at a promise that was made before the scores were known."""
        size = self.layout.checkpoint.size - removed_bytes(self.layout, plan)
        asked = self.recipe.prune.target_size
        if asked is not None and size > parse_size(asked):
            found = f"the plan leaves {human(size)}"
            raise ExciseError(f"prune.target_size is {asked}, and {found}; please report it")

    def _stops(self, verdict: Verdict) -> bool:
        stop_on = self.recipe.validation.stop_on
        return stop_on is not None and SEVERITY[verdict] >= SEVERITY[stop_on]

    def _recipe_before(self, path: Path) -> dict[str, Any]:
        try:
            before = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, ValueError):
            before = None
        if not isinstance(before, dict):
            raise ExciseError(
                f"{path}: damaged, so it cannot be told what this run made; choose another --output, or --force"
            )
        return before

    def _keep_recipe(self) -> None:
        """Writes the resolved recipe; refuses a folder that holds the checkpoint of another one."""
        path = self.folder.path / RECIPE
        resolved = self.recipe.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        resolved["model"] = self.prepared.pinned
        if path.is_file() and (self.folder.path / CHECKPOINT).exists() and not self.prepared.force:
            before = self._recipe_before(path)
            if (
                before.get("model") == self.recipe.model
            ):  # from before commits were written down; the fingerprints decide
                before["model"] = self.prepared.pinned
            before["criteria"], after = (
                before.get("criteria", ["reap"])[:1],
                {**resolved, "criteria": [self.recipe.criteria[0]]},
            )
            for name in (
                "model",
                "dtype",
                "calibration",
                "criteria",
                "prune",
            ):  # what makes the checkpoint; only the first criterion does
                if before.get(name) != after.get(name):
                    raise ExciseError(
                        f"{self.folder.path}: holds a checkpoint made with {name}: {before.get(name)}, now {after.get(name)}; "
                        "choose another --output, or --force to replace it"
                    )
        write_text(path, yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True))
        write_json(self.folder.path / "environment.json", environment())


def _shared(calibration: Windows, validation: Windows) -> int:
    """Validation documents of which calibration has other windows: not overlap, but not quite unseen either."""
    return len(
        {validation.documents[i] for i in validation.document}
        & {calibration.documents[i] for i in calibration.document}
    )
