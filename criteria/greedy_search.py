"""The search behind `causal_greedy`: what is gone, what is estimated, and which experts go next."""

import math

import numpy as np

from criteria.by_name import resolve
from criteria.causal import removal
from criteria.experiment import LEAVE_ONE_OUT, leave_one_out
from criteria.experiment_context import ExperimentContext
from criteria.removal_costs import RemovalCosts
from experts.arrays import Array, Ids, Marks
from experts.errors import ExciseError


class Search:
    """The state of a greedy removal; it is stored after every round, and taken up where it was interrupted.

    Estimates make the shortlists. Those of leave-one-out are brought up to date by every measurement; those
    of a criterion of observed statistics are in other units and stay as they are.

    Attributes:
        gone: experts that were removed [L, E]
        estimate: what the removal of every expert seems to cost [L, E]; lower = removed earlier
        trace: a list per removal, in order: row of the layer, expert, round, cost it added in nats per token
    """

    def __init__(self, context: ExperimentContext, windows: int, outcome: str, start: str) -> None:
        self.context, self.shape, self.budget = context, context.shape, context.budget
        self.costs = RemovalCosts(context, windows, outcome)
        self._updates_estimates = start == LEAVE_ONE_OUT
        stored = context.partial.read()
        if stored:
            self.gone: Marks = stored["gone"].astype(bool)
            self.estimate: Array = stored["estimate"]
            self.trace: list[list[float]] = stored["trace"].tolist()
        else:
            self.gone = np.zeros((self.shape.num_layers, self.shape.num_experts), dtype=bool)
            self.estimate = first_estimates(context, start, outcome, windows)
            self.trace = []

    def left(self) -> int:
        """Return how many experts are still to be removed."""
        return int(self.gone.size - self.budget.total - self.gone.sum())

    def share(self, rounds: int) -> int:
        """Return how many experts each of so many rounds removes.

        Those are experts of every layer in scope layer, of the model in scope global. The number follows from
        the budget alone, never from what is left: an interrupted search takes the same steps.
        """
        most = self.gone.size - self.budget.total
        if self.budget.scope == "layer":  # the layer that loses most
            most = self.shape.num_experts - min(self.budget.of_layers(self.shape.num_layers))
        return self.shape.groups * math.ceil(most / self.shape.groups / rounds)

    def room(self) -> Ids:
        """Return how many experts of every router group each layer can still lose [L]."""
        layers = self.shape.num_layers
        fewest = (self.budget.floor,) * layers
        if self.budget.scope == "layer":
            fewest = self.budget.of_layers(layers)
        experts: Ids = self.shape.num_experts - np.array(fewest) - self.gone.sum(axis=1)
        return experts // self.shape.groups

    def round(self, size: int, shortlist: int) -> None:
        """Measure candidates given what is gone, and remove the `size` cheapest that the budget lets go.

        Args:
            size: experts of every layer in scope layer, of the model in scope global
            shortlist: likewise, how many candidates are measured; 0 = all

        Raises:
            ExciseError: the budget and protected experts leave no candidate.
        """
        candidates = self._candidates(size, shortlist)
        costs = self.costs.of(candidates, self.gone)
        if self._updates_estimates:
            self.estimate = np.where(candidates, costs, self.estimate)
        allowed = np.where(candidates, costs, np.inf)
        chosen = self._cheapest(allowed, min(size, self.left()), self.room())
        if not chosen.any():
            why = "but protected experts and the floor of every layer leave none"
            raise ExciseError(f"causal_greedy: {self.left()} more experts have to go, {why}; keep more")
        self._remove(chosen, costs)

    def _candidates(self, size: int, shortlist: int) -> Marks:
        """Experts whose removal is measured [L, E]: all that may go, or those with the lowest estimates."""
        has_room = (self.room() > 0)[:, None]
        candidates: Marks = ~self.gone & ~self.context.protected & has_room
        if shortlist == 0:
            return candidates
        no_limit = np.full(self.shape.num_layers, self.shape.num_experts)
        estimates = np.where(candidates, self.estimate, np.inf)
        return self._cheapest(estimates, max(shortlist, size), no_limit)

    def _remove(self, chosen: Marks, costs: Array) -> None:
        """Take the chosen experts off, the cheapest first, and store the state."""
        number = self.trace[-1][2] + 1 if self.trace else 0
        removed = sorted(np.argwhere(chosen).tolist(), key=lambda place: float(costs[tuple(place)]))
        self.trace += [[row, expert, number, costs[row, expert]] for row, expert in removed]
        self.gone = self.gone | chosen
        self.context.partial.write(
            {
                "gone": self.gone.astype(np.float64),
                "estimate": self.estimate,
                "trace": np.array(self.trace),
            }
        )

    def _cheapest(self, values: Array, size: int, room: Ids) -> Marks:
        """Mark the experts with the lowest finite values [L, E].

        With router groups the unit is a rank: the r-th cheapest of every group of a layer go together.
        So `size` is rounded down to a multiple of the groups, or up to one rank.

        Args:
            values: lower = removed earlier; infinite = stays [L, E]
            size: experts of every layer in scope layer, of the model in scope global
            room: most experts of every group, layer by layer [L]
        """
        ranks = max(1, self.shape.per_group(size))
        grouped = self.shape.grouped(values)  # [L, groups, E / groups]
        order = np.argsort(grouped, axis=2, kind="stable")
        units = np.take_along_axis(grouped, order, axis=2).sum(axis=1)  # value of every rank [L, E / groups]
        count = np.minimum((units < np.inf).sum(axis=1), room)
        if self.budget.scope == "layer":
            return self.shape.first_ranks(order, np.minimum(count, ranks))
        return self.shape.first_ranks(order, self._best_of_the_model(units, ranks, count))

    @staticmethod
    def _best_of_the_model(units: Array, ranks: int, most: Ids) -> Ids:
        """How many ranks of every layer are among the cheapest of the model [L].

        Args:
            units: value of every rank, ascending in each layer [L, E / groups]
            ranks: how many are taken in all
            most: how many each layer can lose [L]
        """
        num_layers, per_layer = units.shape
        allowed = np.where(np.arange(per_layer) < most[:, None], units, np.inf)
        best = np.argsort(allowed, axis=None, kind="stable")[:ranks]
        best = best[allowed.reshape(-1)[best] < np.inf]
        return np.bincount(best // per_layer, minlength=num_layers)

    def score(self) -> Array:
        """Return the place of every expert in the order of removal [L, E].

        Those that are kept come last, by their estimate.
        """
        score = np.empty(self.gone.shape)
        for place, (row, expert, *_) in enumerate(self.trace):
            score[int(row), int(expert)] = place
        kept = np.argwhere(~self.gone)
        ranked = kept[np.argsort(self.estimate[~self.gone], kind="stable")]
        removed = len(self.trace)
        score[tuple(ranked.T)] = np.arange(removed, removed + len(ranked))
        return score


def first_estimates(context: ExperimentContext, start: str, outcome: str, windows: int) -> Array:
    """Return the estimates a search begins with [L, E]; lower = removed earlier.

    Args:
        context: model and text
        start: causal_removal, or a criterion of observed statistics
        outcome: of leave-one-out
        windows: of leave-one-out
    """
    if start == LEAVE_ONE_OUT:
        # Usually measured before: it is a prerequisite of the search (criteria.experiment.prerequisites).
        results = context.statistics.measured.get(leave_one_out(outcome, windows).key)
        if results is None:
            results = removal(context.without_partial(), "reroute", outcome, windows)
        return results["score"].copy()
    scores = resolve(start).score(context.statistics)
    return np.where(np.isnan(scores), -np.inf, scores)
