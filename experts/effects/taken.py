"""Effects of removals in layers of which not all are measured: a resumed sweep hands them out again."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from experts.arrays import Array
from experts.effects.removal import RemovalBranch, Take

Effects = tuple[Tensor, Tensor]  # ΔCE and KL


@dataclass
class Group:
    """The removals of a batch in one MoE layer.

    Attributes:
        effects: what was measured, by the number of the branch
        count: how many branches there are; None until the last one is born
    """

    effects: dict[int, Effects] = field(default_factory=dict)
    count: int | None = None

    @property
    def is_complete(self) -> bool:
        """Whether every branch has arrived."""
        return self.count == len(self.effects)


class Taken:
    """The unfinished groups of a measurement."""

    def __init__(self) -> None:
        self._groups: dict[tuple[int, int], Group] = {}  # by batch and MoE layer

    def born(self, batch: int, row: int, branches: Iterable[RemovalBranch]) -> Iterator[RemovalBranch]:
        """The branches of a group. Those that arrived before an interruption hand out their effects now."""
        group = self._groups.setdefault((batch, row), Group())
        count = 0
        for count, branch in enumerate(branches, 1):
            if count - 1 in group.effects:
                branch.take(*group.effects[count - 1])
            yield replace(branch, take=self._remembered(batch, row, count - 1, branch.take))
        group.count = count
        self._forget(batch, row)

    def state(self) -> dict[str, Array]:
        """All effects by name."""
        state = {}
        for (batch, row), group in self._groups.items():
            for number, effects in group.effects.items():
                stacked = torch.stack([effect.cpu() for effect in effects])
                state[f"taken {batch} {row} {number}"] = stacked.numpy()
        return state

    def restore(self, state: dict[str, Array], device: torch.device) -> None:
        """Take them up, and out of `state`."""
        for name in [name for name in state if name.startswith("taken ")]:
            batch, row, number = map(int, name.split()[1:])
            delta, divergence = torch.from_numpy(state.pop(name)).to(device)
            self._groups.setdefault((batch, row), Group()).effects[number] = delta, divergence

    def _remembered(self, batch: int, row: int, number: int, take: Take) -> Take:
        def taking(delta: Tensor, divergence: Tensor) -> None:
            take(delta, divergence)
            self._groups[batch, row].effects[number] = delta, divergence
            self._forget(batch, row)

        return taking

    def _forget(self, batch: int, row: int) -> None:
        if self._groups[batch, row].is_complete:
            del self._groups[batch, row]
