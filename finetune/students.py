"""A pruned model to be trained, in the memory of the whole one, which is its teacher."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from experts.anatomy import Anatomy
from experts.plan import Plan
from experts.sharing import sharing
from finetune.adapters import Adapted
from finetune.teacher import SharedTeacher, Teacher

TeacherOf = Callable[[Adapted], Teacher | None]


@dataclass(frozen=True)
class Student:
    """A pruned model, as it is in memory.

    Attributes:
        anatomy: the pruned model
        teacher_of: makes its teacher once the adapters are on; None = no distillation
    """

    anatomy: Anatomy
    teacher_of: TeacherOf


@contextmanager
def shared_student(anatomy: Anatomy, plan: Plan, *, temperature: float, distil: bool) -> Iterator[Student]:
    """Prune a loaded model in place, inside a `with` block; no expert is copied.

    Args:
        anatomy: the whole model
        plan: experts to keep
        temperature: τ of the teacher's distribution
        distil: whether the whole model is the student's teacher
    """
    with sharing(anatomy, plan) as weights:

        def teacher_of(adapted: Adapted) -> Teacher | None:
            return SharedTeacher(weights, temperature, adapted.peft.disable_adapter) if distil else None

        yield Student(weights.anatomy, teacher_of)
