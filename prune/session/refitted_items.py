"""Items of tasks under refitted plans."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from experts.anatomy import Anatomy
from experts.arrays import Array
from experts.model import Model
from experts.plan import Plan
from finetune.refit.result import Refit
from finetune.refit_model import refitted
from validate.tasks import Benchmark, ItemEvaluator


class RefittedItems(ItemEvaluator):
    """The score of every item under a plan after its refit; the unpruned model stays as it is.

    Args:
        model: the unpruned one, resident
        refit_of: the refit of a plan
        benchmark: as of every item evaluator; so are the others
    """

    def __init__(
        self,
        model: Model,
        refit_of: Callable[[Plan], Refit],
        benchmark: Benchmark,
        tokenizer: Any,
        path: Path | None = None,
        key: str = "",
        batch: int = 16,
    ) -> None:
        super().__init__(benchmark, tokenizer, path, key, batch)
        self.model, self.refit_of = model, refit_of

    def measure(self, anatomy: Anatomy, plans: Sequence[Plan | None]) -> Iterator[Array]:
        for plan in plans:
            if plan is None:
                yield from super().measure(anatomy, [None])
                continue
            with refitted(self.model, self.refit_of(plan)):
                values = next(super().measure(anatomy, [None]))
            yield values
