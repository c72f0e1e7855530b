"""Held-out losses of plans after their refit: the same rows as before it."""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np

from criteria.text.windows import Windows
from experts.anatomy import Anatomy
from experts.arrays import Array
from experts.memory import free_bytes
from experts.model import Model
from experts.plan import Plan
from experts.team import deal, undeal
from finetune.refit.plans import RefittedPlan, refit_plans
from finetune.refit.request import Request
from finetune.refit.result import Refit
from finetune.refit_model import refit_of
from validate.rows import LossEvaluator

SHARE = 0.25  # of the free memory that windows of plans may take which are refitted side by side


class RefittedLosses(LossEvaluator):
    """Mean cross-entropy of held-out windows under refitted plans; the unpruned model stays as it is.

    Args:
        model: the unpruned one
        request: text and settings of every refit
        windows: the held-out text
        take: gets the refits that are wanted, with their weights
        wanted: digests of the plans whose refits are wanted
        path: as of every evaluator
        key: as of every evaluator
        batch: held-out windows per forward
    """

    def __init__(
        self,
        model: Model,
        request: Request,
        windows: Windows,
        *,
        take: Callable[[Refit], None] | None = None,
        wanted: Collection[str] = (),
        path: Path | None = None,
        key: str = "",
        batch: int = 8,
    ) -> None:
        super().__init__(windows, path, key, batch)
        self.model, self.request, self.take, self.wanted = model, request, take, wanted

    def measure_plans(self, plans: Sequence[Plan | None], anatomy: Anatomy, title: str = "") -> None:
        super().measure_plans(plans, anatomy, f"refit, {title}")

    def losses_of(self, anatomy: Anatomy, plans: Sequence[Plan | None]) -> Array:
        pruned = [plan for plan in plans if plan is not None]
        hands = deal(pruned, anatomy.team.size)
        given = [(hand, self.request, self.wanted, self.windows, self.batch) for hand in hands]
        refitted = iter(undeal(anatomy.team.map(anatomy, refit_plans, given)))
        found = []
        for plan in plans:
            if plan is None:
                found.append(super().losses_of(anatomy, [None])[0])
            else:
                found.append(self._taken(plan, next(refitted)))
        return np.stack(found)

    def at_most(self, anatomy: Anatomy) -> int:
        windows = self.request.text.tokens.size + self.windows.tokens.size
        width = anatomy.model.config.get_text_config().hidden_size
        each = windows * width * anatomy.model.dtype.itemsize
        return max(1, int(SHARE * free_bytes(anatomy.device) / each))

    def _taken(self, plan: Plan, refitted: RefittedPlan) -> Array:
        if self.take is not None and refitted.layers:
            self.take(refit_of(self.model, plan, self.request, refitted.layers))
        assert refitted.losses is not None, "there is held-out text"
        return refitted.losses
