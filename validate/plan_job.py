"""Many plans in one sweep: they share everything before the first experts."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from torch import Tensor

from experts.ablation import restricted
from experts.decoder import Part
from experts.keys import key_of
from experts.plan import Plan
from experts.sweep.branch import Branch
from experts.sweep.job import Job
from experts.sweep.record import CleanForward


class PlanJob(Job):
    """Batches under several plans. Subclasses say what the batches are, and what becomes of logits.

    The logits are those of whole forwards of the restricted model, bit by bit.

    Attributes:
        plans: what is kept of the model; None = the unpruned model
    """

    def __init__(self, plans: Sequence[Plan | None]) -> None:
        self.plans = plans
        self.head = None in plans
        self.clean_until = None if self.head else 0

    def keep(self, batch: int, number: int, clean: CleanForward, logits: Tensor) -> None:
        """Take the logits [B, W, V] of a batch under a plan.

        Args:
            batch: its number
            number: of the plan
            clean: the clean forward of the batch
            logits: under the plan
        """
        raise NotImplementedError

    @property
    def identity(self) -> str:
        return key_of(self.title, *[None if plan is None else plan.digest for plan in self.plans])

    def born(self, batch: int, row: int, clean: CleanForward) -> Iterator[Branch]:  # noqa: ARG002
        if row == 0:
            for number, plan in enumerate(self.plans):
                if plan is not None:
                    yield _Restricted(row=0, plan=plan, job=self, batch=batch, number=number)

    def most_born(self, batch: int, row: int) -> int:  # noqa: ARG002
        return 0 if row else sum(plan is not None for plan in self.plans)

    def arrived(self, batch: int, clean: CleanForward, logits: Tensor | None) -> None:
        if logits is not None:
            for number, plan in enumerate(self.plans):
                if plan is None:
                    self.keep(batch, number, clean, logits)


@dataclass(frozen=True, kw_only=True)
class _Restricted(Branch):
    """The model under a plan, on a batch.

    Attributes:
        plan: what is kept
        job: takes the logits
        batch: number of the batch
        number: of the plan
    """

    plan: Plan
    job: PlanJob
    batch: int
    number: int

    def change(self, part: Part) -> AbstractContextManager[None]:
        return restricted(part.anatomy, self.plan.of_layers(part.anatomy.shape.layers))

    def arrived(self, clean: CleanForward, logits: Tensor) -> None:
        self.job.keep(self.batch, self.number, clean, logits)
