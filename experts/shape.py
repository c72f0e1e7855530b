"""The shape of a model's experts, and what router groups make of counts. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass

from experts.errors import ExciseError


@dataclass(frozen=True)
class Shape:
    """What a budget is checked against: layers = L, experts = E, top_k = k, groups (1 = none), groups a token may use."""

    layers: tuple[int, ...]
    experts: int
    top_k: int
    groups: int = 1
    top_groups: int = 1

    def check_kept(self, kept: Mapping[int, tuple[int, ...]]) -> None:
        """Refuses a plan (layer -> kept ids) that cannot route: fewer than top_k reachable, or uneven router groups."""
        for layer, ids in kept.items():
            if len(ids) < self.top_k:
                raise ExciseError(f"plan: layer {layer} keeps {len(ids)} experts, but every token uses top_k = {self.top_k}")
            per_group = self.experts // self.groups
            sizes = [sum(i // per_group == group for i in ids) for group in range(self.groups)]
            if len(set(sizes)) > 1:
                shown = " and ".join(map(str, sizes))
                raise ExciseError(
                    f"plan: layer {layer} keeps {shown} experts in its {self.groups} router groups; every group must keep as many"
                )
            if len(ids) < self.smallest:
                raise ExciseError(
                    f"plan: layer {layer} keeps {len(ids)} experts, but with {self.groups} router groups it needs {self.smallest}"
                )

    @property
    def smallest(self) -> int:
        """Fewest experts a layer can keep and still route: k, and with groups enough in every group a token may use.

        Group-limited routers add up the two best experts of a group, so a group never falls below two.
        """
        if self.groups == 1:
            return self.top_k
        return self.groups * max(2, -(-self.top_k // self.top_groups))
