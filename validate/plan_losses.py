"""Held-out losses of many plans in one sweep: they share everything before the first experts."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from criteria.text.windows import Windows
from experts.ablation import restricted
from experts.anatomy import Anatomy
from experts.arrays import Array
from experts.decoder import Part
from experts.keys import key_of
from experts.plan import Plan
from experts.sweep.branch import Branch
from experts.sweep.job import Job
from experts.sweep.record import CleanForward
from experts.sweep.sweep import sweep
from experts.team import deal, undeal
from validate.loss import mean_losses


def plan_losses(anatomy: Anatomy, windows: Windows, plans: Sequence[Plan | None], batch: int = 8) -> Array:
    """Return the mean cross-entropy of every window under every plan [P, N], nats per token, float64.

    They are those of whole forwards of the restricted model, bit by bit.

    Args:
        anatomy: the unpruned model
        windows: N windows of W tokens
        plans: what is kept of the model; None = the unpruned model
        batch: windows per forward
    """
    hands = deal(plans, anatomy.team.size)
    found = anatomy.team.map(anatomy, _losses, [(windows, hand, batch) for hand in hands])
    return np.stack(undeal(found))


def _losses(anatomy: Anatomy, windows: Windows, plans: Sequence[Plan | None], batch: int) -> Array:
    """The same in one process."""
    job = PlanLosses(anatomy, windows, plans, batch)
    sweep(anatomy, job)
    return job.losses


class PlanLosses(Job):
    """Losses of windows under plans.

    Attributes:
        losses: [P, N]
    """

    title = "plans"

    def __init__(self, anatomy: Anatomy, windows: Windows, plans: Sequence[Plan | None], batch: int) -> None:
        self.device, self.plans = anatomy.device, plans
        starts = range(0, len(windows), batch)
        self.parts = [np.arange(start, min(start + batch, len(windows))) for start in starts]
        self.windows = [windows.select(part) for part in self.parts]
        self.losses = np.full((len(plans), len(windows)), np.nan)
        self.head = None in plans
        self.clean_until = None if self.head else 0

    @property
    def batches(self) -> int:
        return len(self.parts)

    @property
    def identity(self) -> str:
        return key_of("plans", *[None if plan is None else plan.digest for plan in self.plans])

    def clean(self, batch: int) -> CleanForward:
        windows = self.windows[batch]
        return CleanForward.of(windows.tensor(self.device), windows.padding(self.device))

    def born(self, batch: int, row: int, clean: CleanForward) -> Iterator[Branch]:  # noqa: ARG002
        if row == 0:
            for number, plan in enumerate(self.plans):
                if plan is not None:
                    yield _Restricted(row=0, plan=plan, job=self, batch=batch, number=number)

    def most_born(self, batch: int, row: int) -> int:  # noqa: ARG002
        return 0 if row else sum(plan is not None for plan in self.plans)

    def state(self) -> dict[str, Array]:
        return {"losses": self.losses}

    def restore(self, state: dict[str, Array]) -> None:
        self.losses[:] = state["losses"]

    def arrived(self, batch: int, clean: CleanForward, logits: Tensor | None) -> None:
        if logits is not None:
            for number, plan in enumerate(self.plans):
                if plan is None:
                    self.keep(batch, number, clean, logits)

    def keep(self, batch: int, number: int, clean: CleanForward, logits: Tensor) -> None:
        """Take the losses of a batch under a plan."""
        self.losses[number, self.parts[batch]] = mean_losses(logits, clean.tokens, self.windows[batch])


@dataclass(frozen=True, kw_only=True)
class _Restricted(Branch):
    """The model under a plan, on a batch of windows.

    Attributes:
        plan: what is kept
        job: takes the losses
        batch: number of the batch
        number: of the plan
    """

    plan: Plan
    job: PlanLosses
    batch: int
    number: int

    def change(self, part: Part) -> AbstractContextManager[None]:
        return restricted(part.anatomy, self.plan.of_layers(part.anatomy.shape.layers))

    def arrived(self, clean: CleanForward, logits: Tensor) -> None:
        self.job.keep(self.batch, self.number, clean, logits)
