"""The raw paired rows: what every plan scores on every held-out window, or on every item of a task."""

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from criteria.text.windows import Windows
from experts.anatomy import Anatomy
from experts.arrays import Array
from experts.errors import ExciseError
from experts.plan import Plan
from experts.sweep.progress import bar_around_sweeps
from validate.plan_losses import plan_losses
from validate.row_file import RowFile

KEEP_EVERY = 60.0  # seconds between two savings of measured plans
TOGETHER = 8  # plans that share a sweep where all weights are in memory; more would save next to nothing
FULL = "full"  # digest and name of the unpruned model's rows


class Evaluator(ABC):
    """Measures plans, each once, and keeps one value per row.

    The model is not the evaluator's: whoever measures passes it. Rows are kept in memory, and with a `path`
    also in a file, from which they are taken over as long as `key` is the same.

    Attributes:
        value: what is measured, in one word
        columns: what names a row
        later: of these, the ones that files of earlier versions lack
        labels: the name of every row, in these columns [N]
        known: values of every row [N] by the plan's digest
    """

    value: ClassVar[str]
    columns: ClassVar[tuple[str, ...]]
    later: ClassVar[tuple[str, ...]] = ()

    def __init__(self, labels: Sequence[tuple[object, ...]], path: Path | None = None, key: str = "") -> None:
        """Take over the rows of earlier runs.

        Args:
            labels: the name of every row [N]
            path: CSV file of the rows (see `RowFile`); None = memory alone
            key: identity of model, data and precision: rows under another key are not taken over
        """
        self.labels = labels
        self._file = RowFile(path, key, self.columns, self.value, labels, self.later) if path else None
        self.known: dict[str, Array] = self._file.restore() if self._file else {}

    @abstractmethod
    def measure(self, anatomy: Anatomy, plans: Sequence[Plan | None]) -> Iterator[Array]:
        """Yield the value of every row [N] under every plan; None = the unpruned model."""

    def now(self, anatomy: Anatomy) -> Array:
        """Return the value of every row [N], of a model as it is."""
        return next(self.measure(anatomy, [None]))

    def measure_plans(self, plans: Sequence[Plan | None], anatomy: Anatomy, title: str = "") -> None:
        """Measure the plans that have no rows yet.

        Args:
            plans: what to keep of the model; None = the unpruned model
            anatomy: the unpruned model
            title: beside the progress bar

        Raises:
            ExciseError: if a value is not finite.
        """
        missing = {digest_of(plan): plan for plan in plans if not self.knows(plan)}
        known = len(plans) - len(missing)
        with bar_around_sweeps(anatomy, title, "plan", len(plans), known) as bar:
            measured = self.measure(anatomy, list(missing.values()))
            for plan, values in zip(missing.values(), measured, strict=True):
                self.keep(plan, values)
                bar.update(1)

    def values(self, plan: Plan | None) -> Array:
        """Return what a measured plan scores on every row [N]; None = the unpruned model.

        Raises:
            LookupError: if the plan was never measured.
        """
        if not self.knows(plan):
            raise LookupError(f"no rows of {_name(plan)!r}: it was not measured")
        return self.known[digest_of(plan)]

    def knows(self, plan: Plan | None) -> bool:
        """Return whether the rows of a plan are there."""
        return digest_of(plan) in self.known

    def keep(self, plan: Plan | None, values: Array) -> None:
        """Take the value of every row [N] as the plan's.

        Raises:
            ExciseError: if a value is not finite.
        """
        self._check_finite(values, _name(plan))
        self.known[digest_of(plan)] = values
        if self._file:
            self._file.append(digest_of(plan), _name(plan), values)

    def _check_finite(self, values: Array, name: str) -> None:
        wrong = np.flatnonzero(~np.isfinite(values))
        if not len(wrong):
            return
        first = int(wrong[0])
        pairs = zip(self.columns, self.labels[first], strict=True)
        row = ", ".join(f"{column} {label}" for column, label in pairs)
        what = f"the {self.value} of {row} under {name!r} is {values[first]}"
        raise ExciseError(f"validation: {what}; is the model sound in this dtype?")


class LossEvaluator(Evaluator):
    """Mean cross-entropy of held-out windows, nats per token.

    Attributes:
        windows: the held-out text, N windows of W tokens
        weights: tokens that count in each window [N]: those that have a next token
        batch: windows per forward
    """

    value = "loss"
    columns = ("window", "document", "domain", "tokens")
    later = ("domain",)

    def __init__(self, windows: Windows, path: Path | None = None, key: str = "", batch: int = 8) -> None:
        self.windows, self.batch = windows, batch
        self.weights: Array = windows.readable.sum(axis=1).astype(np.float64)
        places = zip(windows.document, windows.domain, self.weights, strict=True)
        labels = [
            (number, windows.documents[document], windows.domains[domain], int(tokens))
            for number, (document, domain, tokens) in enumerate(places)
        ]
        super().__init__(labels, path, key)

    def measure(self, anatomy: Anatomy, plans: Sequence[Plan | None]) -> Iterator[Array]:
        left, most = list(plans), anatomy.team.size * self.at_most(anatomy)
        at_once = len(left) if anatomy.weights.streamed else anatomy.team.size
        while left:
            began = time.monotonic()
            at_once = min(at_once, most)
            together, left = left[:at_once], left[at_once:]
            yield from self.losses_of(anatomy, together)
            if not anatomy.weights.streamed:
                each = (time.monotonic() - began) / -(-len(together) // anatomy.team.size)
                at_once = anatomy.team.size * max(1, min(TOGETHER, int(KEEP_EVERY / max(each, 1e-9))))

    def losses_of(self, anatomy: Anatomy, plans: Sequence[Plan | None]) -> Array:
        """Losses of every window under plans that share what they can [P, N]."""
        return plan_losses(anatomy, self.windows, plans, self.batch)

    def at_most(self, anatomy: Anatomy) -> int:  # noqa: ARG002
        """How many plans of one process fit into memory side by side."""
        return sys.maxsize


def digest_of(plan: Plan | None) -> str:
    """Return what the rows of a plan are found by."""
    return FULL if plan is None else plan.digest


def _name(plan: Plan | None) -> str:
    return FULL if plan is None else plan.criterion
