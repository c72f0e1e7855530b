"""Recovery as a stage: the criterion's plan and random plans of its size get the same training."""

from functools import cached_property
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from experts.errors import ExciseError
from experts.keys import environment
from experts.plan import Plan, whole_plan
from finetune.recover_model import recovered_model
from finetune.recovery import ADAPTER, Job, is_trained
from finetune.results import TeacherJson
from finetune.students import Student
from finetune.training_log import CURVE, read_curve
from prune.checkpoint.provenance import pruned_plan
from prune.checkpoint.slices import by_name, slice_layout
from prune.checkpoint.stored_weights import StoredWeights
from prune.recover.identity import Identity
from prune.recover.recovered_folder import CHECKPOINT, RecoveredFolder
from prune.recover.report import markdown
from prune.recover.result import PlacesJson, RecoveryResult
from prune.recover.students import FromDisk, InMemory, choose_students
from prune.recover.summary import recovery_csv, recovery_summary
from prune.recover.targets import check_targets
from prune.session.measures import measures_of
from prune.session.prepared import Prepared
from prune.session.refits import Refits
from prune.session.run_folder import write_json, write_text
from prune.session.session import Session
from validate.draw import random_plans
from validate.measure import Measure
from validate.rig import last_logits

RESULT, REPORT = "recovery.json", "recovery.md"
CRITERION = "criterion"  # folder of the plan that is written, beside random-0, …


class Recovery:
    """Of one plan of a recipe. pruned: the folder that holds it."""

    def __init__(self, session: Session, plan: Plan, pruned: Path) -> None:
        settings = session.recipe.finetune
        if settings is None:
            raise ExciseError("the recipe has no finetune block; add one with at least `data`")
        self.session, self.plan, self.pruned, self.settings = session, plan, pruned, settings
        self.folder = session.folder
        self.refits = Refits(session) if session.recipe.refit else None
        self.identity = Identity(session, settings)

    # Who is recovered.

    @cached_property
    def students(self) -> InMemory | FromDisk:
        """What `auto` chose by the memory that was free stays chosen, also after an interruption."""
        settings, asked = self.settings, self.identity.asked
        if settings.teacher.keep == "auto":
            mode, _, of = self.folder.record.get("students", "").partition(" ")
            known = {"keep": mode} if of == asked else {}
            settings = settings.model_copy(update={"teacher": settings.teacher.model_copy(update=known)})
        windows = self.session.texts.training
        students = choose_students(self.session, settings, windows, self.pruned, self.plan, self.refits)
        self.folder.finish("students", f"{students.keep} {asked}")
        return students

    @cached_property
    def known(self) -> list[Plan]:
        """The random plans of the validation; the first of them are recovered too."""
        settings, shape = self.session.recipe.validation, self.session.shape
        if not self.settings.random_plans:
            return []
        count = max(settings.random_plans, self.settings.random_plans)
        protected = shape.marks(self.plan.protected)
        return random_plans(self.plan, shape, protected, count, settings.random_seed)

    @cached_property
    def plans(self) -> dict[str, Plan]:
        """Folder name -> plan: the criterion's, the random ones, and on request one that keeps everything."""
        plans = {CRITERION: self.plan}
        for number, plan in enumerate(self.known[: self.settings.random_plans]):
            plans[f"random-{number}"] = plan
        if self.settings.unpruned:
            kept = whole_plan(self.session.shape.num_experts, self.session.shape.layers).kept
            plans["unpruned"] = Plan(self.plan.num_experts, kept, self.plan.model, "unpruned", "")
        return plans

    @cached_property
    def written(self) -> RecoveredFolder:
        """Where the criterion's plan goes."""
        key = self.identity.weights(self.students.keep, self.plan)
        return RecoveredFolder(self.session, self.plan, key, self.pruned if self.refits else None)

    # The stage.

    def execute(self) -> RecoveryResult:
        """Write recovery.json, recovery.md, the adapter and the merged checkpoint.

        Returns:
            Content of recovery.json.
        """
        stage = self.identity.report((*self.plans.values(), *self.known))
        if kept := self.folder.kept("recovery", stage, RecoveryResult, RESULT, REPORT, CHECKPOINT, ADAPTER):
            return {**kept, **self._places()}
        self.written.check()
        before, after = self._measured()
        self._recover_all(before[0], after)
        result = self._result(before, after)
        self.folder.begin("recovery")
        write_text(self.folder.path / "healing.csv", recovery_csv(result["plans"]))
        write_json(self.folder.path / RESULT, result)
        write_text(self.folder.path / REPORT, markdown(result))
        self.folder.finish("recovery", stage)
        return result

    def _measured(self) -> tuple[list[Measure], list[Measure]]:
        """What every plan costs before recovery, and measures for after it."""
        before = self.refits.measures(self.plan) if self.refits else measures_of(self.session)
        after = measures_of(self.session, "recovered_", self.identity.training(self.students.keep))
        for old, new in zip(before, after, strict=True):
            plans = [None, *self.plans.values(), *self.known[: old.randoms]]
            for plan in tqdm(plans, desc=f"{old.name} before recovery", unit="plan", delay=2):
                if not old.evaluator.knows(plan):
                    old.evaluator.measure_plans([plan], self.session.anatomy)
            if not new.evaluator.knows(None):
                new.evaluator.keep(None, old.evaluator.values(None))
        return before, after

    def _recover_all(self, held_out: Measure, after: list[Measure]) -> None:
        """The criterion's plan last: the proof of its checkpoint takes the place of the whole model."""
        names = [*(name for name in self.plans if name != CRITERION), CRITERION]
        for name in names:
            if not self._is_done(name, after):
                self._recover(name, held_out, after)

    def _is_done(self, name: str, after: list[Measure]) -> bool:
        """Whether this very plan's numbers, curve and, of the criterion's, checkpoint are there.

        The name does not tell: other plans had it before.
        """
        plan = self.plans[name]
        measured = all(measure.evaluator.knows(plan) for measure in after)
        trained = is_trained(self._place(name), self.identity.folder(self.students.keep, plan))
        return measured and trained and (name != CRITERION or self.written.is_done)

    def _place(self, name: str) -> Path:
        return self.folder.path / "recovery" / name

    def _recover(self, name: str, held_out: Measure, after: list[Measure]) -> None:
        """One plan: trained, measured, and the criterion's also written and proven."""
        plan, folder = self.plans[name], self._place(name)
        expected: Tensor | None = None
        with self.students.student(plan, folder) as student:
            job = self._job(student, plan, folder, held_out)
            fingerprint = self.session.fingerprint
            with recovered_model(job, student, plan, self._teacher, fingerprint) as recovered:
                for evaluator in dict.fromkeys(measure.evaluator for measure in after):
                    if not evaluator.knows(plan):
                        evaluator.keep(plan, evaluator.now(student.anatomy))
                if name == CRITERION:
                    expected = last_logits(student.anatomy, self.session.texts.validation)
                    self.written.write(recovered, folder)
        if expected is not None:
            self.written.prove(expected)

    @property
    def _teacher(self) -> TeacherJson:
        """The unpruned model, unless the recipe names another."""
        settings, keep = self.settings.teacher, self.students.keep
        return {
            "model": settings.model or self.session.recipe.model,
            "keep": keep,
            "top_k": settings.top_k if keep == "disk" else None,
        }

    def _job(self, student: Student, plan: Plan, folder: Path, held_out: Measure) -> Job:
        storage = StoredWeights(
            student.anatomy.model, by_name(slice_layout(self.session.prepared.layout, plan))
        )

        def loss() -> float:
            return held_out.mean(held_out.evaluator.now(student.anatomy))

        return Job(
            anatomy=student.anatomy,
            counts=dict(plan.counts),
            windows=self.session.texts.training,
            batch=self.settings.batch,
            seed=self.settings.seed,
            settings=self.settings,
            folder=folder,
            rounded=storage.rounded,
            held_out=loss,
            key=self.identity.folder(self.students.keep, plan),
            base=str(self.pruned.absolute()),
        )

    # The result.

    def _result(self, before: list[Measure], after: list[Measure]) -> RecoveryResult:
        curves = {name: read_curve(self._place(name) / CURVE) for name in self.plans}
        pairs, seed = list(zip(before, after, strict=True)), self.session.recipe.validation.random_seed
        return {
            **recovery_summary(self.plans, self.known, pairs, curves, seed),
            "training": self.written.training,
            "text": self.session.texts.validation.summary(),
            "model": self.session.prepared.model,
            **self._places(),
        }

    def _places(self) -> PlacesJson:
        """Where things are; a folder may have been moved since they were made."""
        run = self.folder.path
        return {"run": str(run), "checkpoint": str(self.written.path), "adapter": str(run / ADAPTER)}


def recover_folder(prepared: Prepared) -> RecoveryResult:
    """Recover a pruned folder that the recipe names; the recipe's model is teacher and source."""
    settings = prepared.recipe.finetune
    assert settings is not None, "checked by the command"
    assert settings.checkpoint is not None, "checked by the command"
    session = Session(prepared)
    refit = Refits(session).key if prepared.recipe.refit else None
    plan = pruned_plan(settings.checkpoint, prepared.layout, prepared.fingerprint, refit)
    session.check_texts(training=True)
    check_targets(session)
    with prepared.folder.held():
        write_json(prepared.folder.path / "environment.json", environment())
        return Recovery(session, plan, settings.checkpoint).execute()
