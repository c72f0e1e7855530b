"""Recovery as a stage: the criterion's plan and random plans of its size get the same training. What is left of the lead?"""

import shutil
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from tqdm import tqdm

from criteria.text.windows import Windows
from experts.anatomy import Anatomy, dissect
from experts.disk.companions import RECOVERY
from experts.disk.layout import Layout
from experts.disk.shards import read_json
from experts.errors import ExciseError
from experts.files import replacing_folder
from experts.keys import environment, key_of
from experts.loading import skeleton
from experts.plan import Plan
from finetune.adapters import find_targets
from finetune.recovery import ADAPTER, Job, Recovered, is_trained, recovered
from finetune.training_log import CURVE, read_rows
from prune.checkpoint import write as checkpoint
from prune.checkpoint.card import recovered_card
from prune.checkpoint.provenance import pruned_plan
from prune.checkpoint.slices import slice_layout
from prune.recover.report import markdown
from prune.recover.stored_weights import Storage
from prune.recover.students import FromDisk, InMemory, Student, choose_students, teacher_identity
from prune.recover.summary import described, found, healing_csv
from prune.session.measures import measures_of, row_key
from prune.session.prepare import Prepared
from prune.session.run_folder import describe, write_json, write_text
from prune.session.session import Marks, Session
from validate.draw import random_plans
from validate.null import Measure
from validate.rig import check_reloaded, last_logits, require

RESULT, REPORT, CHECKPOINT = "recovery.json", "recovery.md", "recovered"
BEGUN = "begun "  # before the key of a checkpoint that is being written: it is not the finished one
NOT_THE_MODEL = {"random_plans", "unpruned", "save_steps", "checkpoint", "teacher", "data"}


def check_targets(session: Session) -> None:
    """Names that match nothing and weights that could not be written back, before any work: a model without weights is enough."""
    settings, prepared = session.recipe.finetune, session.prepared
    assert settings is not None, "asked for only where there is one"
    check_stored(
        dissect(skeleton(prepared.source, session.recipe.trust_remote_code)),
        prepared.layout,
        settings.targets,
    )


def check_stored(anatomy: Anatomy, layout: Layout, targets: tuple[str, ...]) -> None:
    """Whether every weight that `targets` mean has its place in the checkpoint. anatomy: of the whole model, with or without weights."""
    whole = Plan(
        layout.shape.num_experts, dict.fromkeys(layout.shape.layers, tuple(range(layout.shape.num_experts)))
    )
    pieces = {piece.name: piece for shard in slice_layout(layout, whole).values() for piece in shard}
    weights = dict(anatomy.model.named_parameters())
    found = {name: weights[name] for name in find_targets(anatomy, targets).weights}
    Storage(anatomy.model, pieces).check(found)


class Recovery:
    """Of one plan of a recipe. pruned: the folder that holds it; protected: experts that random plans keep too [L, E]."""

    def __init__(self, session: Session, plan: Plan, protected: Marks, pruned: Path) -> None:
        settings = session.recipe.finetune
        if settings is None:
            raise ExciseError("the recipe has no finetune block; add one with at least `data`")
        self.session, self.plan, self.protected, self.pruned, self.settings = (
            session,
            plan,
            protected,
            pruned,
            settings,
        )
        self.folder = session.folder

    @property
    def windows(self) -> Windows:
        """Training text."""
        return self.session.training

    @cached_property
    def students(self) -> InMemory | FromDisk:
        """What `auto` chose by the memory that was free stays chosen, also after an interruption."""
        settings, asked = self.settings, self._asked
        if settings.teacher.keep == "auto":
            mode, _, of = self.folder.record.get("students", "").partition(" ")
            known = {"keep": mode} if of == asked else {}
            settings = settings.model_copy(update={"teacher": settings.teacher.model_copy(update=known)})
        chosen = choose_students(self.session, settings, self.windows, self.pruned, self.plan)
        self.folder.finish("students", f"{chosen.keep} {asked}")
        return chosen

    @cached_property
    def _asked(self) -> str:
        """Identity of a training as the recipe asks for it: all but the plan, and where the teacher is."""
        settings = self.settings.model_dump(mode="json", exclude=NOT_THE_MODEL)
        return key_of("recovery", self.session.loaded, version("peft"), self.windows.hash, settings)

    @cached_property
    def key(self) -> str:
        """Identity of a training: everything that its weights depend on but the plan."""
        teacher = [self.students.keep, self._teacher, self.settings.teacher.top_k] if self.settings.kl else []
        return key_of(self._asked, teacher)

    @cached_property
    def _teacher(self) -> tuple[str, ...]:
        return teacher_identity(self.session, self.settings) if self.settings.kl else ()

    def _weights(self, plan: Plan) -> str:
        """Identity of one plan's trained weights."""
        return key_of(self.key, plan.digest)

    def _training(self, plan: Plan) -> str:
        """Identity of what its folder holds: the curve of healing too, which the held-out text makes."""
        return key_of(self._weights(plan), self.session.validation.hash)

    @cached_property
    def known(self) -> list[Plan]:
        """The random plans of the validation; the first of them are recovered too."""
        settings = self.session.recipe.validation
        if not self.settings.random_plans:
            return []
        count = max(settings.random_plans, self.settings.random_plans)
        return random_plans(self.plan, self.session.shape, self.protected, count, settings.random_seed)

    @cached_property
    def plans(self) -> dict[str, Plan]:
        """Folder name -> plan: the criterion's, the random ones, and on request one that keeps everything."""
        found = {"criterion": self.plan}
        found |= {
            f"random-{number}": plan for number, plan in enumerate(self.known[: self.settings.random_plans])
        }
        if self.settings.unpruned:
            shape = self.session.shape
            everything = dict.fromkeys(shape.layers, tuple(range(shape.num_experts)))
            found["unpruned"] = Plan(shape.num_experts, everything, self.plan.model, "unpruned", "")
        return found

    def execute(self) -> dict[str, Any]:
        """Writes recovery.json, recovery.md, the adapter and the merged checkpoint; gives the content of recovery.json."""
        stage = self._stage
        if kept := self.folder.kept("recovery", stage, RESULT, REPORT, CHECKPOINT, ADAPTER):
            return {**kept, **self._places()}
        self._check_output()
        before, after = self._measured()
        for name, plan in self.plans.items():
            if not self._done(name, plan, after):
                self._recover(name, plan, before[0], after)
        result = self._result(before, after)
        self.folder.begin("recovery")
        write_text(self.folder.path / "healing.csv", healing_csv(result["plans"]))
        write_json(self.folder.path / RESULT, result)
        write_text(self.folder.path / REPORT, markdown(result))
        self.folder.finish("recovery", stage)
        return result

    def _check_output(self) -> None:
        """A checkpoint of another training is replaced only with --force."""
        made = self.folder.record.get("recover")
        own = self._weights(self.plan)
        if self.out.exists() and made not in (None, own, BEGUN + own) and not self.session.prepared.force:
            raise ExciseError(
                f"{self.out}: holds the result of another training; choose another --output, or --force to replace it"
            )

    @property
    def _stage(self) -> str:
        """Of everything that the report depends on."""
        settings, recipe = (
            self.settings.model_dump(mode="json", exclude={"save_steps", "checkpoint"}),
            self.session.recipe,
        )
        tasks, text = recipe.validation.tasks, self.session.validation
        asked = (self.session.asked, tasks.batch, tasks.random_plans) if tasks else ()
        documents = [text.documents[document] for document in text.document]  # what intervals are drawn over
        plans = [plan.digest for plan in (*self.plans.values(), *self.known)]
        trained = (version("peft"), self._teacher, self.windows.hash)
        drawn = (recipe.validation.random_seed, recipe.model)
        return key_of(row_key(self.session), trained, settings, plans, asked, documents, drawn)

    def _measured(self) -> tuple[list[Measure], list[Measure]]:
        """What every plan costs before recovery, and measures for after it. From here on they need no model of their own."""
        before, after = measures_of(self.session), measures_of(self.session, "recovered_", self.key)
        for old, new in zip(before, after, strict=True):
            plans = [None, *self.plans.values(), *self.known[: old.randoms]]
            for plan in tqdm(plans, desc=f"{old.name} before recovery", unit="plan", delay=2):
                old.values(plan)
            if not new.evaluator.knows(None):
                new.evaluator.keep(None, old.evaluator.values(None))
        for measure in (*before, *after):
            measure.evaluator.anatomy = None
        return before, after

    def _pieces(self, plan: Plan) -> dict[str, Any]:
        return {
            piece.name: piece
            for shard in slice_layout(self.session.prepared.layout, plan).values()
            for piece in shard
        }

    @property
    def out(self) -> Path:
        return self.folder.path / CHECKPOINT

    def _done(self, name: str, plan: Plan, after: list[Measure]) -> bool:
        """Whether this very plan's numbers, curve and, of the criterion's, checkpoint are there.

        The name does not tell: other plans had it before.
        """
        known = all(measure.evaluator.knows(plan) for measure in after)
        if not (known and is_trained(self._place(name), self._training(plan))):
            return False
        return name != "criterion" or self.folder.valid("recover", self._weights(plan), CHECKPOINT, ADAPTER)

    def _place(self, name: str) -> Path:
        return self.folder.path / "recovery" / name

    def _recover(self, name: str, plan: Plan, held_out: Measure, after: list[Measure]) -> None:
        """One plan: trained, measured, and the criterion's also written and reloaded."""
        folder = self._place(name)
        with self.students.student(plan, folder) as student:
            job = self._job(student, plan, folder, held_out)
            with recovered(job, student.teacher_of) as merged:
                for evaluator in dict.fromkeys(measure.evaluator for measure in after):
                    if not evaluator.knows(plan):
                        evaluator.keep(plan, evaluator.measure(student.anatomy))
                if name != "criterion":
                    return
                expected = last_logits(student.anatomy, self.session.validation)
                self._write(job, merged)
        self._check_reloaded(expected)

    def _job(self, student: Student, plan: Plan, folder: Path, held_out: Measure) -> Job:
        storage = Storage(student.anatomy.model, self._pieces(plan))

        def loss() -> float:
            return held_out.mean(held_out.evaluator.measure(student.anatomy))

        return Job(
            anatomy=student.anatomy,
            counts=dict(plan.counts),
            windows=self.windows,
            batch=self.settings.batch,
            seed=self.settings.seed,
            settings=self.settings,
            folder=folder,
            rounded=storage.rounded,
            held_out=loss,
            key=self._training(plan),
            base=str(self.pruned.absolute()),
        )

    def _write(self, job: Job, merged: Recovered) -> None:
        """The merged checkpoint, through the same export as a pruned one, and the adapter beside it."""
        prepared, shards = self.session.prepared, self.folder.path / "recovery" / "merged"
        training = described(self.settings, job, merged.tuned, self.session.recipe.model, self.students.keep)
        self.folder.begin("recovery")  # the report that may be there is of the checkpoint before
        self.folder.finish(
            "recover", BEGUN + self._weights(self.plan)
        )  # from here on the folder is no other training's
        try:
            changed = Storage(job.anatomy.model, self._pieces(self.plan)).write(merged.weights, shards)
            extra = checkpoint.TrainedWeights(changed, {"plan": self.plan.digest, "training": training})
            card = recovered_card(self.session.recipe, prepared.layout, self.plan, training)
            checkpoint.export(
                prepared.layout,
                self.plan,
                self.out,
                card,
                prepared.force or self.out.exists(),
                recovered=extra,
            )
        finally:
            shutil.rmtree(shards, ignore_errors=True)
        with replacing_folder(self.folder.path / ADAPTER) as fresh:
            shutil.copytree(job.folder / ADAPTER, fresh, dirs_exist_ok=True)

    def _check_reloaded(self, expected: Tensor) -> None:
        """What was written, loaded again in the place of the whole model, gives the merged model's logits bit by bit."""
        self.session.unload()
        try:
            require(
                [check_reloaded(expected, self.session.reloaded_logits(self.out, self.plan, expected.device))]
            )
        except BaseException:
            shutil.rmtree(self.out)
            raise
        self.folder.finish("recover", self._weights(self.plan))

    def _result(self, before: list[Measure], after: list[Measure]) -> dict[str, Any]:
        curves = {name: read_rows(self._place(name) / CURVE) for name in self.plans}
        return {
            **found(
                self.plans,
                self.known,
                list(zip(before, after, strict=True)),
                curves,
                self.session.recipe.validation.random_seed,
            ),
            "training": read_json(self.out / RECOVERY)["training"],
            "text": describe(self.session.validation),
            "model": self.session.prepared.model,
            **self._places(),
        }

    def _places(self) -> dict[str, str]:
        """Where things are; a folder may have been moved since they were made."""
        run = self.folder.path
        return {"run": str(run), "checkpoint": str(self.out), "adapter": str(run / ADAPTER)}


def recover_folder(prepared: Prepared) -> dict[str, Any]:
    """`excise finetune` of a pruned folder that the recipe names: its plan, the recipe's model as teacher and source."""
    settings = prepared.recipe.finetune
    assert settings is not None, "checked by the command"
    assert settings.checkpoint is not None, "checked by the command"
    plan = pruned_plan(settings.checkpoint, prepared.layout, prepared.fingerprint)
    session = Session(prepared)
    session.read()
    _ = session.training
    check_targets(session)
    nothing = np.zeros((len(prepared.shape.layers), prepared.shape.num_experts), dtype=bool)
    with prepared.folder.held():
        write_json(prepared.folder.path / "environment.json", environment())
        return Recovery(session, plan, nothing, settings.checkpoint).execute()
