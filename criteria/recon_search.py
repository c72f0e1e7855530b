"""The kept set of one layer that changes its routed output least, with the router choosing again.

Everything is at clean inputs: tokens [t, H] that enter the block, and Gaussian projections of what every
expert would make of them. A removed set is valued by routing all tokens again without it, through the
model's own router, and by the mean squared change of the projected output.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from criteria.removal_room import Place
from experts.anatomy import Anatomy
from experts.arrays import Array, Marks
from experts.routing import routing_without

GAIN = 1e-9  # a swap has to gain more, as a share of the error


@dataclass(frozen=True)
class Inputs:
    """What is known of one layer at clean inputs, of t tokens.

    Attributes:
        hidden: what enters the block [t, H]
        projected: P-dimensional projections of all experts' outputs [t, E, P]
        target: that of the clean routed output [t, P]
    """

    hidden: Tensor
    projected: Tensor
    target: Tensor


class LayerSearch:
    """A removed set of one layer that grows, and is then improved by swaps.

    Args:
        anatomy: layers whose weights are there
        row: the layer's place among them
        inputs: of the layer
        places: its counts; see `criteria.removal_room`
        protected: experts that stay [E]
        start: id of its first expert in the places, row · E in the model

    Attributes:
        order: removed experts, the first to go in front
        errors: mean squared change after 0, 1, 2, … removals
    """

    def __init__(
        self,
        anatomy: Anatomy,
        row: int,
        inputs: Inputs,
        places: tuple[Place, ...],
        protected: Marks,
        start: int,
    ) -> None:
        self.anatomy, self.row, self.inputs, self.protected = anatomy, row, inputs, protected
        self.cells = [cell - start for place in places for cell in place.cells]
        self.order: list[int] = []
        self.errors: list[float] = [0.0]

    @torch.no_grad()
    def error(self, removed: list[int]) -> float:
        """Mean squared change of the routed output without some experts, per token."""
        marks = torch.zeros(len(self.protected), dtype=torch.bool, device=self.inputs.hidden.device)
        marks[removed] = True
        index, weight = routing_without(self.anatomy, self.row, self.inputs.hidden, marks)
        width = self.inputs.projected.shape[2]
        chosen = self.inputs.projected.gather(1, index[:, :, None].expand(-1, -1, width))
        change = (chosen * weight[:, :, None].to(chosen.dtype)).sum(dim=1) - self.inputs.target
        return float(change.double().square().sum(dim=1).mean())

    def grow(self, each: list[int]) -> bool:
        """Remove so many experts of every cell, one by one, the cheapest next; False = too few are left."""
        left = list(each)
        while any(left):
            allowed = [
                int(expert)
                for cell, count in zip(self.cells, left, strict=True)
                for expert in cell
                if count and int(expert) not in self.order and not self.protected[expert]
            ]
            if not allowed:
                return False
            errors = [self.error([*self.order, expert]) for expert in allowed]
            at = len(errors) - 1 - int(np.argmin(errors[::-1]))  # of equals the higher id goes
            self.order.append(allowed[at])
            self.errors.append(errors[at])
            left[self._cell_of(allowed[at])] -= 1
        return True

    def improve(self, count: int) -> float:
        """Swap the first `count` removals with kept experts until no swap helps; returns the error."""
        self.order = self.order[:count]
        error, improved = self.error(self.order), bool(count)
        while improved:
            improved = False
            for place in range(count):
                found, expert = self._best_instead(place)
                if found < error * (1 - GAIN):
                    self.order[place], error, improved = expert, found, True
        return error

    def _best_instead(self, place: int) -> tuple[float, int]:
        """The kept expert that had better go instead of the one at a place, and the error then."""
        cell = self.cells[self._cell_of(self.order[place])]
        best = (np.inf, -1)
        for expert in map(int, cell):
            if expert not in self.order and not self.protected[expert]:
                trial = [*self.order[:place], expert, *self.order[place + 1 :]]
                best = min(best, (self.error(trial), expert))
        return best

    def costs(self) -> Array:
        """What the removal of every kept expert would add, on its own; inf where it cannot route [E]."""
        costs = np.full(len(self.protected), np.inf)
        for cell in self.cells:
            for expert in map(int, cell):
                if expert not in self.order and self._can_route(len(self.order) + 1):
                    costs[expert] = self.error([*self.order, expert])
        return costs

    def _can_route(self, removed: int) -> bool:
        even = self.anatomy.shape.groups == 1  # else one removal alone would be uneven
        return even and len(self.protected) - removed >= self.anatomy.shape.top_k

    def _cell_of(self, expert: int) -> int:
        return next(number for number, cell in enumerate(self.cells) if expert in cell)


def allocated(curves: list[list[float]], units: int) -> list[int]:
    """How many units each layer loses so that the sum of its curve's values is least, by dynamic programming.

    Args:
        curves: for every layer, its cost after 0, 1, 2, … units
        units: that go in all
    """
    best = [0.0] + [np.inf] * units
    choices: list[list[int]] = []
    for curve in curves:
        ways = [
            min((best[total - own] + curve[own], own) for own in range(min(total, len(curve) - 1) + 1))
            for total in range(units + 1)
        ]
        best, choice = [cost for cost, _ in ways], [own for _, own in ways]
        choices.append(choice)
    counts: list[int] = []
    for choice in reversed(choices):
        counts.append(choice[units])
        units -= counts[-1]
    return counts[::-1]
