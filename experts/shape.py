"""The shape of a model's experts, and what router groups make of counts and ids.

A group-limited router divides its E experts into `groups` runs of neighbouring ids, lets a token choose among
`top_groups` of them, and so needs every group to keep as many experts.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from experts.errors import ExciseError

Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True)
class Shape:
    """L MoE layers of E experts, k of which a token uses.

    Attributes:
        layers: indices of the decoder layers that hold experts, ascending [L]
        num_experts: E, in every one of them
        top_k: k
        groups: router groups; 1 = none
        top_groups: groups a token may use
    """

    layers: tuple[int, ...]
    num_experts: int
    top_k: int
    groups: int = 1
    top_groups: int = 1

    @property
    def num_layers(self) -> int:
        """L."""
        return len(self.layers)

    @property
    def total(self) -> int:
        """L × E."""
        return self.num_layers * self.num_experts

    @property
    def group_size(self) -> int:
        """Experts of a router group; E without groups."""
        return self.num_experts // self.groups

    @property
    def smallest(self) -> int:
        """Fewest experts a layer can keep and still route.

        That is k; with router groups, enough of them in every group that a token may use. Group-limited
        routers add up the two best experts of a group, so a group never falls below two.
        """
        if self.groups == 1:
            return self.top_k
        return self.groups * max(2, -(-self.top_k // self.top_groups))

    def is_even(self, count: int) -> bool:
        """Whether the groups can share so many experts evenly."""
        return count % self.groups == 0

    def even_below(self, count: int) -> int:
        """The largest number ≤ `count` that the groups can share evenly."""
        return self.per_group(count) * self.groups

    def even_above(self, count: int) -> int:
        """The smallest number ≥ `count` that the groups can share evenly."""
        return -(-count // self.groups) * self.groups

    def per_group(self, count: int) -> int:
        """Of so many experts of a layer, how many each group has; rounded down."""
        return count // self.groups

    def group_counts(self, ids: Iterable[int]) -> tuple[int, ...]:
        """How many of these experts each group has."""
        counts = [0] * self.groups
        for expert in ids:
            counts[expert // self.group_size] += 1
        return tuple(counts)

    def first_of_each_group(self, count: int) -> tuple[int, ...]:
        """`count` ids, as many from the start of every group."""
        starts = range(0, self.num_experts, self.group_size)
        of_groups = [range(start, start + self.per_group(count)) for start in starts]
        return tuple(itertools.chain(*of_groups))

    def grouped(self, values: NDArray[Scalar]) -> NDArray[Scalar]:
        """[…, E] with the groups apart: […, groups, E / groups]."""
        return values.reshape(*values.shape[:-1], self.groups, self.group_size)

    def first_ranks(
        self, order: NDArray[np.int64], counts: Sequence[int] | NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """The experts that come first in every group.

        Args:
            order: places within each group, the first to be taken in front [L, groups, E / groups]
            counts: how many of every group are taken, layer by layer [L]

        Returns:
            True at these experts, bool [L, E].
        """
        marks = np.zeros(order.shape, dtype=bool)
        for row, count in enumerate(counts):
            np.put_along_axis(marks[row], order[row, :, :count], True, axis=1)
        return marks.reshape(len(order), self.num_experts)

    def marks(self, ids: Mapping[int, Iterable[int]]) -> NDArray[np.bool_]:
        """[L, E], True at these ids (decoder layer -> ids)."""
        marks = np.zeros((self.num_layers, self.num_experts), dtype=bool)
        for layer, chosen in ids.items():
            marks[self.layers.index(layer), list(chosen)] = True
        return marks

    def check_kept(self, kept: Mapping[int, Sequence[int]]) -> None:
        """Refuse a plan that cannot route.

        Args:
            kept: decoder layer -> ids of the kept experts

        Raises:
            ExciseError: a layer keeps too few experts, or its router groups keep unequal numbers.
        """
        for layer, ids in kept.items():
            self._check_layer(layer, ids)

    def _check_layer(self, layer: int, ids: Sequence[int]) -> None:
        keeps = f"plan: layer {layer} keeps"
        if len(ids) < self.top_k:
            raise ExciseError(f"{keeps} {len(ids)} experts, but every token uses top_k = {self.top_k}")
        sizes = self.group_counts(ids)
        if len(set(sizes)) > 1:
            shown = " and ".join(map(str, sizes))
            raise ExciseError(
                f"{keeps} {shown} experts in its {self.groups} router groups; every group must keep as many"
            )
        if len(ids) < self.smallest:
            raise ExciseError(
                f"{keeps} {len(ids)} experts, but with {self.groups} router groups it needs {self.smallest}"
            )
