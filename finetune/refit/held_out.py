"""Held-out windows on their way through a model that is pruned and refitted while they pass."""

import numpy as np
from torch import Tensor

from criteria.text.windows import Windows
from experts.ablation import restricted
from experts.anatomy import Anatomy
from experts.arrays import Array
from experts.decoder import part_of
from experts.plan import Plan
from experts.sweep.stage import Stage, State
from finetune.refit.passage import inputs_of
from validate.loss import mean_losses


class HeldOut:
    """Windows between two decoder layers of a pruned model. Nothing is fitted to them.

    Args:
        anatomy: the whole model
        plan: what the pruned one keeps
        windows: N windows of W tokens
        batch: windows per forward

    Attributes:
        losses: mean cross-entropy of every window [N], nats per token; nan until the last layer
    """

    def __init__(self, anatomy: Anatomy, plan: Plan, windows: Windows, batch: int) -> None:
        self.anatomy, self.plan, self.stage = anatomy, plan, Stage(anatomy)
        starts = range(0, len(windows), batch)
        self._parts = [np.arange(start, min(start + batch, len(windows))) for start in starts]
        self._windows = [windows.select(part) for part in self._parts]
        self._states: list[State | None] = [None] * len(self._parts)
        self.losses: Array = np.full(len(windows), np.nan)

    def pass_through(self, layer: int) -> None:
        """Compute one decoder layer, as its weights are now."""
        part = part_of(self.anatomy, range(layer, layer + 1))
        kept = self.plan.of_layers(part.anatomy.shape.layers) if part.rows else None
        for batch, windows in enumerate(self._windows):
            inputs = inputs_of(windows, self.anatomy)
            if kept is None:
                left = self.stage.run(part.span, self._states[batch], inputs)
            else:
                with restricted(part.anatomy, kept):
                    left = self.stage.run(part.span, self._states[batch], inputs)
            self._take(batch, left, windows.tensor(self.anatomy.device))

    def _take(self, batch: int, left: State | Tensor | None, tokens: Tensor) -> None:
        """What enters the next layer; of the last one the logits."""
        if isinstance(left, Tensor):
            self.losses[self._parts[batch]] = mean_losses(left, tokens, self._windows[batch])
            self._states[batch] = None
        else:
            self._states[batch] = left
