"""Swaps across the border of a plan: a removed expert comes back, a kept one goes."""

from collections.abc import Iterator, Mapping
from heapq import merge
from itertools import chain, islice
from operator import itemgetter

import numpy as np

from criteria.removal_room import Room
from experts.arrays import Array, Ids, Marks

Swap = tuple[int, int]  # who comes back, who goes; the id of an expert is row · E + e
Known = Mapping[Swap, tuple[float, int]]  # change of the KL, and how many swaps were accepted before


class Border:
    """The swaps that a budget allows, in the order in which they are worth a measurement.

    First those that lowered the KL when they were last measured, then those never measured, nearest to the
    border first, then the others, which an accepted swap may have made better. The distance from the border
    is that of both experts together, in ranks of the ranking that the search begins with.

    Args:
        room: what may be removed
        ranked: the ranking, higher = keep [L·E]

    Attributes:
        fields: the cells of every field. A swap stays in a cell; every field has a shortlist of its own
    """

    def __init__(self, room: Room, ranked: Array) -> None:
        self.room, self.ranked = room, ranked
        groups, whole = room.shape.groups, np.arange(room.shape.total)
        cells = np.split(whole, room.shape.num_layers * groups)
        if not room.moves:
            self.fields = [cells[start : start + groups] for start in range(0, len(cells), groups)]
        else:  # where counts go in units of several experts they stay as they are
            self.fields = [[whole] if room.unit == 1 else cells]

    def shortlist(self, removed: Marks, known: Known, accepted: int, size: int) -> list[Swap]:
        """Return the swaps that are measured next; those that nothing has changed for are left out.

        Args:
            removed: experts that are removed now [L·E]
            known: what was measured before
            accepted: how many swaps were accepted so far
            size: most of every field
        """
        old = sorted((change, swap) for swap, (change, when) in known.items() if when < accepted)
        found: list[Swap] = []
        for cells in self.fields:
            inside = np.isin(np.arange(len(removed)), np.concatenate(cells))
            falling = (swap for change, swap in old if change < 0 and inside[swap[0]])
            others = (swap for change, swap in old if change >= 0 and inside[swap[0]])
            by_distance = merge(*(self._nearest(cell, removed) for cell in cells), key=itemgetter(0))
            untried = (swap for _, swap in by_distance if swap not in known)
            ordered = chain(falling, untried, others)
            found += islice((swap for swap in ordered if self._is_allowed(swap, removed)), size)
        return found

    def _nearest(self, cell: Ids, removed: Marks) -> Iterator[tuple[int, Swap]]:
        """All swaps in a cell, with their distance from the border."""
        order = cell[np.argsort(-self.ranked[cell], kind="stable")]
        back = order[removed[order]].tolist()
        out = order[~removed[order]][::-1].tolist()
        for distance in range(len(back) + len(out) - 1):
            for place in range(max(0, distance - len(out) + 1), min(distance + 1, len(back))):
                yield distance, (back[place], out[distance - place])

    def _is_allowed(self, swap: Swap, removed: Marks) -> bool:
        """Whether both can be swapped now, and the layer that loses one keeps enough."""
        back, out = swap
        if not removed[back] or removed[out] or not self.room.free[out]:
            return False
        num_experts = self.room.shape.num_experts
        row = out // num_experts
        kept = num_experts - int(removed[row * num_experts : (row + 1) * num_experts].sum())
        return row == back // num_experts or kept > self.room.budget.floor
