"""The budget of learned masks: exact for the masks that are tried, and for the survival probabilities."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from criteria.removal_room import Room
from criteria.scores import Scores
from criteria.selection import plan_for

HALVINGS = 60  # of the interval in which a shift lies
WIDEST = 40.0  # logits beyond it are certain


class MaskBudget:
    """How many experts survive: in every router group of a layer, or (scope global) in the model.

    Args:
        room: what may be removed

    Attributes:
        blocks: ids of the experts that share a number, protected ones left out
        survivors: how many of each block survive
    """

    def __init__(self, room: Room) -> None:
        self.room = room
        self.blocks: list[Tensor] = []
        self.survivors: list[int] = []
        for ids, kept in self._numbers():
            free = ids[room.free[ids]]
            self.blocks.append(torch.from_numpy(free))
            self.survivors.append(kept - (len(ids) - len(free)))

    def _numbers(self) -> Iterator[tuple[np.ndarray, int]]:
        if self.room.moves:
            yield np.arange(self.room.shape.total), self.room.budget.total
            return
        for place in self.room.places:
            (cell,) = place.cells
            yield cell, len(cell) - place.most

    def kept(self, logits: Tensor) -> Tensor:
        """The experts that survive: exactly as many as a plan keeps, where the plan keeps them [L·E]."""
        shape = self.room.shape
        values = logits.double().numpy().reshape(shape.num_layers, shape.num_experts)
        scores = Scores(values, self.room.protected, shape.layers, "learned_mask", "")
        plan = plan_for(scores, self.room.budget, shape)
        return torch.from_numpy(shape.marks(plan.kept).reshape(-1))

    def retracted(self, logits: Tensor) -> Tensor:
        """Shift every block so that its survival probabilities σ(logit) add up to its survivors [L·E]."""
        shifted = logits.clone()
        for block, count in zip(self.blocks, self.survivors, strict=True):
            low, high = torch.tensor([-2 * WIDEST, 2 * WIDEST], dtype=torch.float64)
            for _ in range(HALVINGS):
                middle = (low + high) / 2
                many = torch.sigmoid(logits[block] + middle).sum() > count
                low, high = torch.where(many, low, middle), torch.where(many, middle, high)
            shifted[block] = (logits[block] + (low + high) / 2).clamp(-WIDEST, WIDEST)
        return shifted

    def tangent(self, slopes: Tensor, logits: Tensor) -> Tensor:
        """Take out of slopes what would change the sum of the survival probabilities of a block [L·E]."""
        inside = torch.zeros_like(slopes)
        for block in self.blocks:
            chance = torch.sigmoid(logits[block])
            normal = chance * (1 - chance)
            along = (slopes[block] @ normal) / (normal @ normal).clamp(min=1e-30)
            inside[block] = slopes[block] - along * normal
        return inside

    def softened(self, logits: Tensor, kept: Tensor, temperature: float) -> Tensor:
        """σ((logit − boundary) / τ) [L·E], the boundary half-way between survivors and others of a block."""
        soft = torch.zeros_like(logits)
        for block in self.blocks:
            survives, values = kept[block], logits[block]
            if survives.any() and not survives.all():
                boundary = (values[survives].min() + values[~survives].max()).detach() / 2
                soft = soft.index_put((block,), torch.sigmoid((values - boundary) / temperature))
        return soft
