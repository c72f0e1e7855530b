"""The greedy elimination of one layer: the expert goes after which least is left, and again."""

from collections.abc import Sequence

import torch
from torch import Tensor

from criteria.elimination.calls import Call
from criteria.elimination.dual import Dual
from criteria.elimination.primal import Primal
from criteria.elimination.problem import Elimination, Problem
from experts.anatomy import Anatomy
from experts.inner_activations import DOWN, features_of, see_inner
from experts.routing import routing_without


class LayerSearch:
    """A layer on its way down to as few experts as can route.

    Args:
        anatomy: the model, whose layer is in memory
        row: of the layer
        call: of its block, by the whole model
        rerouted: candidates per removal that are routed again and solved anew; 0 = features stay as they are

    Attributes:
        left: experts that are left, in order
        objective: J after every removal, expert by expert; of those that stay, J if they went
    """

    def __init__(self, anatomy: Anatomy, row: int, call: Call, rerouted: int) -> None:
        self.anatomy, self.row, self.call, self.rerouted = anatomy, row, call, rerouted
        self.left = list(range(anatomy.shape.num_experts))
        self.objective: dict[int, float] = {}
        self._known, self._at_work = self._begun(self.left)

    def run(self) -> dict[int, float]:
        """Let all experts go that can. Returns `objective`."""
        while len(self.left) > self.anatomy.shape.smallest:
            self._step()
        for expert in self.left:
            self.objective[expert] = self._at_work.objective + self._cost(expert)
        return self.objective

    def _step(self) -> None:
        order = sorted(self._candidates(), key=self._cost)
        expert = order[0]
        if self.rerouted and self._can_route(expert):
            tried = {one: self._begun(self._without(one)) for one in order[: self.rerouted]}
            expert = min(tried, key=lambda one: tried[one][1].objective)
            self._known, self._at_work = tried[expert]
        else:
            self._at_work.remove(self._known.index(expert))
        self.left = self._without(expert)
        self.objective[expert] = self._at_work.objective

    def _cost(self, expert: int) -> float:
        return self._at_work.cost(self._known.index(expert))

    def _without(self, expert: int) -> list[int]:
        return [one for one in self.left if one != expert]

    def _candidates(self) -> list[int]:
        """Experts of the router groups that have most: groups stay as even as they can."""
        shape = self.anatomy.shape
        counts = shape.group_counts(self.left)
        return [one for one in self.left if counts[one // shape.group_size] == max(counts)]

    def _can_route(self, expert: int) -> bool:
        """Whether a router can choose among the others: its groups have to be of one size."""
        return len(set(self.anatomy.shape.group_counts(self._without(expert)))) == 1

    def _begun(self, experts: list[int]) -> tuple[list[int], Elimination]:
        """The elimination from these experts on, with features as they are routed now."""
        problem = self._problem(experts)
        fewer = problem.unknowns <= len(problem.lacking)
        return experts, Primal(problem) if fewer else Dual(problem)

    def _problem(self, experts: Sequence[int]) -> Problem:
        call, layer = self.call, self.anatomy.layers[self.row]
        index, weight = call.index, call.weight
        if len(experts) < self.anatomy.shape.num_experts:
            removed = torch.ones(self.anatomy.shape.num_experts, dtype=torch.bool)
            removed[list(experts)] = False
            found = routing_without(self.anatomy, self.row, call.entering, removed)
            index, weight = found[0].to(index.dtype), found[1].to(weight.dtype)
        seen = see_inner(layer.experts, layer.experts.forward, call.hidden, index, weight)
        return Problem(
            features_of(seen, index, weight, experts),
            self._weights(experts),
            call.routed.double() - seen.routed.double(),
        )

    def _weights(self, experts: Sequence[int]) -> Tensor:
        """Down projections [n, I, H]."""
        module = self.anatomy.layers[self.row].experts
        down = module.get_parameter(DOWN).detach()[list(experts)].double()
        return down if module.is_transposed else down.transpose(1, 2)
