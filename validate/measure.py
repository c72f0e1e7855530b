"""What plans are measured by: the held-out loss, or the items of a task."""

from dataclasses import dataclass, field

import numpy as np

from experts.arrays import Array, Ids
from experts.plan import Plan
from validate.rows import Evaluator, LossEvaluator

LOSS = "loss"


@dataclass(frozen=True)
class Measure:
    """A number per plan, from N paired rows.

    Attributes:
        name: loss, or the task
        metric: unit of the value
        evaluator: measures plans, and keeps their rows
        weights: of the rows: tokens of a window, 1 of an item [N]
        clusters: what intervals are drawn over: documents, or the items themselves [N]
        sign: +1 where smaller is better (loss), −1 for scores
        rows: the part of the evaluator's rows that belongs to this measure
        randoms: how many random plans are measured; None = all
        domain: which of `domains` each row is of [N]; None where rows have none
        domains: labels of the text's sources
    """

    name: str
    metric: str
    evaluator: Evaluator
    weights: Array
    clusters: Ids
    sign: int = 1
    rows: slice | Ids = field(default_factory=lambda: slice(None))
    randoms: int | None = None
    domain: Ids | None = None
    domains: tuple[str, ...] = ()

    @property
    def binary(self) -> bool:
        """Whether items are answered right or wrong: then McNemar's test is exact."""
        return self.sign < 0 and bool(np.isin(self.values(None), (0.0, -1.0)).all())

    def values(self, plan: Plan | None) -> Array:
        """Value of every row under a measured plan [N], smaller = better; None = the unpruned model."""
        return self.sign * self.evaluator.values(plan)[self.rows]

    def mean(self, values: Array) -> float:
        """Weighted mean of the rows."""
        return float(np.average(values, weights=self.weights))


def loss_measure(losses: LossEvaluator) -> Measure:
    """Mean cross-entropy of held-out windows, nats per token, over all of them and in every domain."""
    text = losses.windows
    return Measure(
        name=LOSS,
        metric="nats per token",
        evaluator=losses,
        weights=losses.weights,
        clusters=text.document,
        domain=text.domain,
        domains=text.domains,
    )
