"""How many experts a layer may keep, and at which of these numbers its cost is measured."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from criteria.budget import Budget
from experts.arrays import Array, Ids, Marks
from experts.errors import ExciseError
from experts.shape import Shape

MOST = 8  # counts that are measured in a layer; the costs of those between them are interpolated


@dataclass(frozen=True)
class Grid:
    """Counts under a budget of scope global.

    Attributes:
        shape: of the model
        budget: its floor and its multiples hold in every layer
        protected: experts that are never removed [L, E]
    """

    shape: Shape
    budget: Budget
    protected: Marks

    @property
    def unit(self) -> int:
        """Every count is a multiple of it."""
        return max(self.budget.multiple, self.shape.groups)

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """What a layer may keep, ascending [C]."""
        lowest = -(-max(self.budget.floor, self.shape.smallest) // self.unit) * self.unit
        return tuple(range(lowest, self.shape.num_experts + 1, self.unit))

    @property
    def is_fixed(self) -> bool:
        """Whether the total leaves every layer at its fewest experts, or at its most."""
        layers = self.shape.num_layers
        return self.budget.total in (layers * self.counts[0], layers * self.counts[-1])

    @property
    def nothing_to_choose(self) -> str:
        """What is said of such a budget."""
        each = self.budget.total // self.shape.num_layers
        return f"{self.budget.text}: every layer has to keep {each} experts, so there are no counts to choose"

    @cached_property
    def least(self) -> Ids:
        """Fewest experts of every layer that its protected ones leave [L]."""
        of_groups: Ids = self.shape.grouped(self.protected).sum(axis=2).max(axis=1)
        return of_groups * self.shape.groups

    @cached_property
    def measured(self) -> tuple[int, ...]:
        """Those of `counts` that are measured, evenly spread; keeping all experts costs nothing."""
        last = len(self.counts) - 1
        places = np.unique(np.linspace(0, last, min(MOST, last + 1)).round().astype(int))
        chosen = [self.counts[place] for place in places]
        return tuple(count for count in chosen if count < self.shape.num_experts)

    def allows(self, row: int, count: int) -> bool:
        """Whether the protected experts of a MoE layer fit into a count."""
        return bool(count >= self.least[row])

    def of_all(self, measured: Array) -> Array:
        """The cost of every count, between the measured ones on straight lines.

        Args:
            measured: of `measured` [L, M], nan where a layer's protected experts do not fit

        Returns:
            Of `counts` [L, C]; ∞ where they do not fit.
        """
        known = np.array([*self.measured, self.shape.num_experts])
        costs = np.full((len(measured), len(self.counts)), np.inf)
        for row, own in enumerate(np.pad(measured, ((0, 0), (0, 1)))):
            there = ~np.isnan(own)
            allowed = np.array([self.allows(row, count) for count in self.counts])
            costs[row, allowed] = np.interp(np.array(self.counts)[allowed], known[there], own[there])
        return costs

    def check(self) -> None:
        """Refuse a budget that leaves nothing to choose.

        Raises:
            ExciseError: it is of scope layer, or its total leaves every layer one count.
        """
        if self.budget.scope != "global" or self.budget.counts:
            raise ExciseError(
                f"{self.budget.text}: counts per layer are chosen in scope global alone; "
                "scope layer fixes them"
            )
        if self.is_fixed:
            raise ExciseError(f"{self.nothing_to_choose}; remove fewer, or lower floor or multiple_of")
