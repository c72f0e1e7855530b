"""What the choice of counts comes to."""

from collections.abc import Mapping
from dataclasses import dataclass

from experts.arrays import Array
from experts.plan import Plan


@dataclass(frozen=True)
class Allocation:
    """Counts per layer, and what they rest on. Costs are those of one layer alone, cut and refitted.

    Attributes:
        plan: the highest scores of every layer, as many as were chosen; knows its reverse of the same counts
        by_scores: decoder layer -> experts that it would keep by the scores alone
        measured: counts that were measured [M]
        divergence: KL(unpruned ‖ cut and refitted) on text that no refit has seen, in nats per token [L, M];
            nan where protected experts do not fit
        rise: of the loss there [L, M]
        expected: Σ over the layers of the divergence of the chosen counts, in nats per token
        expected_by_scores: the same for the counts by scores
    """

    plan: Plan
    by_scores: Mapping[int, int]
    measured: tuple[int, ...]
    divergence: Array
    rise: Array
    expected: float
    expected_by_scores: float

    @property
    def counts(self) -> dict[int, int]:
        """Decoder layer -> experts that it keeps."""
        return self.plan.counts
