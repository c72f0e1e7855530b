"""Held-out losses of many plans in one sweep: they share everything before the first experts."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from criteria.text.windows import Windows
from experts.anatomy import Anatomy
from experts.arrays import Array
from experts.plan import Plan
from experts.sweep.record import CleanForward
from experts.sweep.sweep import sweep
from experts.team import deal, undeal
from validate.loss import mean_losses
from validate.plan_job import PlanJob


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


class PlanLosses(PlanJob):
    """Losses of windows under plans.

    Attributes:
        losses: [P, N]
    """

    title = "plans"

    def __init__(self, anatomy: Anatomy, windows: Windows, plans: Sequence[Plan | None], batch: int) -> None:
        super().__init__(plans)
        self.device = anatomy.device
        starts = range(0, len(windows), batch)
        self.parts = [np.arange(start, min(start + batch, len(windows))) for start in starts]
        self.windows = [windows.select(part) for part in self.parts]
        self.losses = np.full((len(plans), len(windows)), np.nan)

    @property
    def batches(self) -> int:
        return len(self.parts)

    def clean(self, batch: int) -> CleanForward:
        windows = self.windows[batch]
        return CleanForward.of(windows.tensor(self.device), windows.padding(self.device))

    def keep(self, batch: int, number: int, clean: CleanForward, logits: Tensor) -> None:
        self.losses[number, self.parts[batch]] = mean_losses(logits, clean.tokens, self.windows[batch])

    def state(self) -> dict[str, Array]:
        return {"losses": self.losses}

    def restore(self, state: dict[str, Array]) -> None:
        self.losses[:] = state["losses"]
