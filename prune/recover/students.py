"""Pruned models to be recovered, and their teacher: shared weights in memory, or models from disk."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from criteria.text.windows import Windows
from experts.anatomy import dissect
from experts.disk.fingerprint import fingerprint
from experts.disk.shards import open_checkpoint
from experts.errors import ExciseError
from experts.files import temporary_folder
from experts.keys import key_of
from experts.loading import load_network
from experts.notes import tell
from experts.plan import Plan
from finetune.students import Student, shared_student
from finetune.teacher import CachedTeacher, Teacher, cache_teacher, is_cached
from prune.checkpoint.provenance import pruned_plan
from prune.checkpoint.refitted import refitted_weights
from prune.checkpoint.write import export
from prune.recipe.schema import FinetuneSettings
from prune.recover.memory_estimate import missing_memory
from prune.session.refits import Refits
from prune.session.session import Session


class InMemory:
    """The unpruned model is loaded once; each student is a view of it, and it is every student's teacher."""

    keep = "memory"

    def __init__(self, session: Session, settings: FinetuneSettings) -> None:
        self.session, self.settings = session, settings

    @contextmanager
    def student(self, plan: Plan, folder: Path) -> Iterator[Student]:  # noqa: ARG002 - no files
        settings = self.settings
        distil = settings.kl > 0
        with shared_student(
            self.session.anatomy, plan, temperature=settings.temperature, distil=distil
        ) as student:
            yield student


class FromDisk:
    """The teacher's best logits are cached first; then one pruned model at a time is loaded."""

    keep = "disk"

    def __init__(
        self,
        session: Session,
        settings: FinetuneSettings,
        windows: Windows,
        pruned: Path,
        plan: Plan,
        refits: Refits | None = None,
    ) -> None:
        self.session, self.settings, self.windows = session, settings, windows
        self.pruned, self.plan, self.refits = pruned, plan, refits

    @contextmanager
    def student(self, plan: Plan, folder: Path) -> Iterator[Student]:
        teacher = self._teacher() if self.settings.kl else None
        device = self.session.model.device if self.session.model.is_loaded else None
        place = folder.with_name(f"{folder.name}-pruned")
        try:
            written, recipe = self._written(plan, place), self.session.recipe
            self.session.model.unload()
            model = load_network(written, recipe.dtype, not plan.uniform or recipe.trust_remote_code, device)
            yield Student(dissect(model, pruned=True), lambda _: teacher)
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def _written(self, plan: Plan, place: Path) -> Path:
        """A folder that holds this plan's checkpoint and no other's: what lies there is asked what it is."""
        if plan.digest == self.plan.digest:
            self._check(self.pruned, plan)
            return self.pruned
        with suppress(ExciseError):
            self._check(place, plan)
            return place
        self._export(plan, place)
        return place

    def _export(self, plan: Plan, place: Path) -> None:
        layout = self.session.prepared.layout
        if self.refits is None:
            export(layout, plan, place, force=True)
            return
        with temporary_folder(self.session.folder.path) as folder:
            changed = refitted_weights(self.session.model, self.refits.of(plan), folder)
            export(layout, plan, place, force=True, recovered=changed)
        self.refits.forget()

    def _check(self, folder: Path, plan: Plan) -> None:
        """Its provenance, its tensors and their bytes at both ends.

        Raises ExciseError for a folder of another plan, or edited since.
        """
        refit = self.refits.key if self.refits else None
        found = pruned_plan(folder, self.session.prepared.layout, self.session.fingerprint, refit)
        if found.digest != plan.digest:
            other = found.criterion or "made by hand"
            raise ExciseError(f"{folder}: holds another plan ({other}) than {plan.criterion}; write it again")

    def _teacher(self) -> Teacher:
        settings, recipe, name = self.settings, self.session.recipe, self.settings.teacher.model
        source = self.session.prepared.teacher or self.session.prepared.source
        key = key_of(
            "teacher",
            teacher_identity(self.session, settings),
            self.windows.hash,
            settings.temperature,
            settings.teacher.top_k,
        )
        folder = self.session.folder.path / "teacher"
        if not is_cached(folder, key):
            model = (
                load_network(source, recipe.dtype, recipe.trust_remote_code)
                if name
                else self.session.anatomy.model
            )
            cache_teacher(
                model, self.windows, settings.temperature, settings.teacher.top_k, settings.batch, folder, key
            )
        return CachedTeacher(folder)


def teacher_identity(session: Session, settings: FinetuneSettings) -> tuple[str, ...]:
    """Of the teacher as it computes. Another model is known by its content, not by its name."""
    teacher, (own, *rest) = session.prepared.teacher, session.model.identity
    return (fingerprint(open_checkpoint(teacher)) if settings.teacher.model and teacher else own, *rest)


def choose_students(
    session: Session,
    settings: FinetuneSettings,
    windows: Windows,
    pruned: Path,
    plan: Plan,
    refits: Refits | None = None,
) -> InMemory | FromDisk:
    """As `finetune.teacher` says; `auto` shares the weights in memory where the training then fits.

    A refit changes weights that the teacher would share, so refitted students come from disk.
    """
    wanted, other = settings.teacher.keep, settings.teacher.model
    from_disk = other or refits or wanted == "disk"
    if from_disk or (wanted == "auto" and not _fits(session, settings, windows, plan)):
        return FromDisk(session, settings, windows, pruned, plan, refits)
    return InMemory(session, settings)


def _fits(session: Session, settings: FinetuneSettings, windows: Windows, plan: Plan) -> bool:
    """Whether the training fits beside the unpruned model; where not, a note says what is done."""
    missing = missing_memory(session, settings, windows, plan)
    if missing:
        tell(missing)
    return not missing
