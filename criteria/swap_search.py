"""The search behind `causal_swaps`: what is removed, what is known of swaps, and which are accepted."""

import numpy as np

from criteria.by_name import resolve
from criteria.experiment_context import ExperimentContext
from criteria.pairs import room_of
from criteria.scores import Scores
from criteria.selection import plan_for
from criteria.swap_costs import SetCosts
from criteria.swap_moves import Border, Swap
from criteria.text.halves import first_half
from experts.arrays import Array, Marks

REFUSAL = "causal_swaps needs two windows or more: a swap has to help in both halves of the text"


class SwapSearch:
    """The state of a search by swaps; it is stored after every pass, and taken up where it was interrupted.

    Args:
        context: model, text and budget
        start: criterion of observed statistics whose plan it begins with
        windows: how many windows are used; 0 = all

    Attributes:
        removed: experts that are removed [L·E]
        known: swap -> change of the KL when it was last measured, and how many were accepted before
        trace: a list per accepted swap: pass, row and expert that came back, row and expert that went
        divergence: KL on both halves, of the start and after every accepted swap
        measured: how many sets were measured
        passes: how many passes are done
    """

    def __init__(self, context: ExperimentContext, start: str, windows: int) -> None:
        self.context, self.shape = context, context.shape
        self.half = first_half(context.chosen(windows), REFUSAL)
        self.costs = SetCosts(context, windows)
        scores = resolve(start).score(context.statistics)
        self.ranked: Array = np.where(np.isnan(scores), -np.inf, scores).reshape(-1)
        self.border = Border(room_of(context), self.ranked)
        self.known: dict[Swap, tuple[float, int]] = {}
        self.trace: list[list[float]] = []
        self.divergence: list[list[float]] = []
        self.measured = self.passes = 0
        if stored := context.partial.read():
            self._restore(stored)
        else:
            plan = plan_for(
                Scores(scores, context.protected, self.shape.layers, start, ""), context.budget, self.shape
            )
            self.removed: Marks = ~self.shape.marks(plan.kept).reshape(-1)

    def pass_over(self, size: int) -> bool:
        """Measure swaps, and make those that lower the KL in both halves of the text.

        The best of them are tried together, one after another, no two in the same layer: each has to lower
        the KL on top of the earlier ones, too.

        Args:
            size: swaps measured: of every layer in scope layer, of the model in scope global

        Returns:
            Whether there was anything to measure.
        """
        swaps = self.border.shortlist(self.removed, self.known, len(self.trace), size)
        if not swaps:
            return False
        costs = self._costs([[swap] for swap in swaps])
        changes = costs[1:] - costs[0]
        if not self.divergence:
            self.divergence.append(self._halves(costs[0]))
        for swap, change in zip(swaps, changes, strict=True):
            self.known[swap] = (float(change.mean()), len(self.trace))
        better = sorted(
            (float(change.mean()), swap)
            for swap, change in zip(swaps, changes, strict=True)
            if self._falls(change)
        )
        self._accept(self._apart([swap for _, swap in better]))
        self.passes += 1
        self._store()
        return True

    def _accept(self, swaps: list[Swap]) -> None:
        """Make swaps one after another as long as each lowers the KL on top of the earlier ones."""
        if not swaps:
            return
        costs = self._costs([swaps[: count + 1] for count in range(len(swaps))])
        for number, (back, out) in enumerate(swaps):
            change = costs[number + 1] - costs[number]
            if not self._falls(change):
                return
            self.known[out, back] = (-float(change.mean()), len(self.trace))
            self.removed[[back, out]] = False, True
            places = [*divmod(back, self.shape.num_experts), *divmod(out, self.shape.num_experts)]
            self.trace.append([self.passes, *places])
            self.divergence.append(self._halves(costs[number + 1]))

    def _apart(self, swaps: list[Swap]) -> list[Swap]:
        """The first swaps of which no two touch the same layer."""
        touched: set[int] = set()
        chosen = []
        for swap in swaps:
            rows = {expert // self.shape.num_experts for expert in swap}
            if not rows & touched:
                chosen.append(swap)
                touched |= rows
        return chosen

    def _costs(self, changes: list[list[Swap]]) -> Array:
        """KL of what is removed now and after each list of swaps [1 + M, N]."""
        sets = np.tile(self.removed, (1 + len(changes), 1))
        for marks, swaps in zip(sets[1:], changes, strict=True):
            for back, out in swaps:
                marks[back], marks[out] = False, True
        self.measured += len(changes)
        return self.costs.of(sets.reshape(len(sets), self.shape.num_layers, -1))

    def _halves(self, costs: Array) -> list[float]:
        """Means over the windows of both halves. costs: [N]."""
        return [float(costs[half].mean()) for half in (self.half, ~self.half)]

    def _falls(self, change: Array) -> bool:
        """Whether a change of the KL [N] is below 0 in both halves."""
        return max(self._halves(change)) < 0

    def score(self) -> Array:
        """Return the place of every expert [L, E]: kept ones above the others, in the ranking's order."""
        order = np.lexsort((-self.ranked, self.removed))  # stable: of equals the lower id comes first
        score = np.empty(len(order))
        score[order] = np.arange(len(order))[::-1]
        return score.reshape(self.shape.num_layers, -1)

    def _store(self) -> None:
        known = [[*swap, change, when] for swap, (change, when) in self.known.items()]
        self.context.partial.write(
            {
                "removed": self.removed.astype(np.float64),
                "known": np.array(known),
                "trace": np.array(self.trace).reshape(-1, 5),
                "divergence": np.array(self.divergence),
                "counts": np.array([self.measured, self.passes], dtype=np.float64),
            }
        )

    def _restore(self, stored: dict[str, Array]) -> None:
        self.removed = stored["removed"].astype(bool)
        self.known = {
            (int(back), int(out)): (change, int(when)) for back, out, change, when in stored["known"].tolist()
        }
        self.trace, self.divergence = stored["trace"].tolist(), stored["divergence"].tolist()
        self.measured, self.passes = (int(count) for count in stored["counts"])
