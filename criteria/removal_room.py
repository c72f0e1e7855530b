"""Which sets of experts a budget lets a search remove: where, how many, and how many at a time.

Scope layer fixes the number for every router group of every layer. Scope global fixes it for the whole model:
a layer then loses whole units, as many experts of each of its router groups, down to its floor.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from criteria.budget import Budget
from experts.arrays import Ids, Marks
from experts.errors import ExciseError
from experts.shape import Shape


@dataclass(frozen=True)
class Place:
    """Experts whose number is counted together: a router group of a layer, or a layer of all its groups.

    Attributes:
        cells: ids of the experts of every router group in it; an expert's id is row · E + e
        size: experts of every cell that go together
        most: how many times it can lose so many
    """

    cells: tuple[Ids, ...]
    size: int
    most: int


@dataclass(frozen=True)
class Room:
    """What may be removed.

    Attributes:
        shape: of the model, L layers of E experts
        budget: how many experts a plan keeps
        protected: experts that stay [L, E]
    """

    shape: Shape
    budget: Budget
    protected: Marks

    @property
    def unit(self) -> int:
        """Experts of a layer that go together in scope global."""
        return max(self.budget.multiple, self.shape.groups) if self.moves else 1

    @property
    def moves(self) -> bool:
        """Whether a layer's count is free (scope global)."""
        return self.budget.scope == "global"

    @property
    def units(self) -> int:
        """How many units are removed in all, after `first`."""
        removed = self.shape.total - self.budget.total
        return (removed - self.shape.num_layers * self._odd) // self.unit

    @property
    def first(self) -> int:
        """Experts that every cell loses before units are counted: E need not divide by a unit."""
        return self._odd // self.shape.groups

    @property
    def _odd(self) -> int:
        return self.shape.num_experts % self.unit

    @cached_property
    def free(self) -> Marks:
        """Experts that may go [L·E]."""
        marks: Marks = ~self.protected.reshape(-1)
        return marks

    @cached_property
    def cell(self) -> Ids:
        """The router group of every expert, counted over the model [L·E]."""
        return np.arange(self.shape.total) // self.shape.group_size

    @cached_property
    def places(self) -> tuple[Place, ...]:
        """Where counts are kept: cells in scope layer, layers in scope global."""
        return tuple(self._layers() if self.moves else self._cells())

    def _cells(self) -> Iterator[Place]:
        kept = self.budget.of_layers(self.shape.num_layers)
        for cell in range(self.shape.num_layers * self.shape.groups):
            count = self.shape.num_experts - kept[cell // self.shape.groups]
            yield Place((self._ids(cell),), 1, self.shape.per_group(count))

    def _layers(self) -> Iterator[Place]:
        groups = self.shape.groups
        most = (self.shape.num_experts - self._odd - self.shape.even_above(self.budget.floor)) // self.unit
        for row in range(self.shape.num_layers):
            cells = tuple(self._ids(row * groups + group) for group in range(groups))
            yield Place(cells, self.unit // groups, most)

    def _ids(self, cell: int) -> Ids:
        start = cell * self.shape.group_size
        return np.arange(start, start + self.shape.group_size)

    def full(self, name: str, left: int) -> ExciseError:
        """What is raised where a search finds no more experts that may go."""
        why = "but protected experts and the floor of every layer leave none"
        return ExciseError(f"{name}: {left} more have to go, {why}; keep more")
