"""The raw paired rows: what every plan scores on every window, or item. Written as they come, read back after an interruption."""

import csv
import io
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from criteria.statistics import Array
from criteria.text.windows import Windows
from experts.ablation import restricted
from experts.anatomy import Anatomy
from experts.errors import ExciseError, naming
from experts.files import replacing
from experts.plan import Plan
from validate.loss import window_losses

FULL = "full"
BYTES = "surrogateescape"  # names of documents may hold bytes that are no UTF-8; a kill may leave half a sign


class Evaluator(ABC):
    """Measures plans, each once; rows of earlier runs with the same `key` are used again.

    path: CSV file, one row per (plan, row), values with all their digits. key: identity of model, data and precision; rows under another
    key are dropped. columns, labels: what names a row, the same for every plan; value: what is measured.
    """

    value: str
    columns: tuple[str, ...]

    def __init__(
        self, anatomy: Anatomy | None, path: Path, key: str, labels: Sequence[tuple[object, ...]]
    ) -> None:
        self.anatomy, self.path, self.key, self.labels = anatomy, path, key, labels
        self.known: dict[str, Array] = {}
        self._names: dict[str, str] = {}
        self._restore()

    @abstractmethod
    def measure(self, anatomy: Anatomy) -> Array:
        """The value of every row [N], of a model as it is now."""

    def values(self, plan: Plan | None) -> Array:
        """What the plan scores on every row [N]; None = the unpruned model."""
        digest = digest_of(plan)
        if digest not in self.known:
            assert self.anatomy is not None, "rows are missing and no model is loaded"
            with restricted(self.anatomy, plan) if plan else nullcontext():
                self.keep(plan, self.measure(self.anatomy))
        return self.known[digest]

    def knows(self, plan: Plan | None) -> bool:
        """Whether the rows of a plan are there."""
        return digest_of(plan) in self.known

    def keep(self, plan: Plan | None, values: Array) -> None:
        """Takes the value of every row [N] as the plan's. Raises ExciseError where one is not finite."""
        digest = digest_of(plan)
        self._names[digest] = FULL if plan is None else plan.criterion
        self.known[digest] = self._finite(values, self._names[digest])
        with naming(self.path), self.path.open("a", newline="", encoding="utf-8", errors=BYTES) as file:
            csv.writer(file).writerows(self._rows(digest))

    def _finite(self, values: Array, name: str) -> Array:
        if not np.isfinite(values).all():
            wrong = int(np.flatnonzero(~np.isfinite(values))[0])
            row = ", ".join(
                f"{column} {label}" for column, label in zip(self.columns, self.labels[wrong], strict=True)
            )
            raise ExciseError(
                f"validation: the {self.value} of {row} under {name!r} is {values[wrong]}; is the model sound in this dtype?"
            )
        return values

    def _rows(self, digest: str) -> list[tuple[object, ...]]:
        head = self.key, self._names[digest], digest
        return [
            (*head, *label, repr(float(value)))
            for label, value in zip(self.labels, self.known[digest], strict=True)
        ]

    def _restore(self) -> None:
        """Takes over complete plans of the same key and rewrites the file without the rest."""
        found: dict[str, dict[tuple[str, ...], float]] = {}
        if self.path.exists():
            # A kill may have left half a number at the end.
            whole = self.path.read_text(encoding="utf-8", errors=BYTES).rpartition("\n")[0]
            try:
                for row in csv.DictReader(io.StringIO(whole)):
                    if row["key"] == self.key:
                        label = tuple(row[column] for column in self.columns)
                        found.setdefault(row["digest"], {})[label] = float(row[self.value])
                        self._names[row["digest"]] = row["plan"]
            except (KeyError, TypeError, ValueError, csv.Error):  # damaged: measured again
                found = {}
        labels = [tuple(map(str, label)) for label in self.labels]
        complete = {digest: rows for digest, rows in found.items() if rows.keys() == set(labels)}
        self.known = {
            digest: np.array([rows[label] for label in labels]) for digest, rows in complete.items()
        }
        with (
            replacing(self.path) as fresh,
            fresh.open("w", newline="", encoding="utf-8", errors=BYTES) as file,
        ):
            writer = csv.writer(file)
            writer.writerow(("key", "plan", "digest", *self.columns, self.value))
            for digest in self.known:
                writer.writerows(self._rows(digest))


class LossEvaluator(Evaluator):
    """Mean cross-entropy of held-out windows, nats per token. weights: [N], the tokens that count in a window."""

    value, columns = "loss", ("window", "document", "tokens")

    def __init__(
        self, anatomy: Anatomy | None, windows: Windows, path: Path, key: str, batch: int = 8
    ) -> None:
        self.windows, self.batch = windows, batch
        self.weights: Array = (windows.mask[:, 1:] & windows.mask[:, :-1]).sum(axis=1).astype(np.float64)
        names = [windows.documents[document] for document in windows.document]
        super().__init__(
            anatomy, path, key, [(i, name, int(self.weights[i])) for i, name in enumerate(names)]
        )

    def measure(self, anatomy: Anatomy) -> Array:
        return window_losses(anatomy.model, self.windows, self.batch)

    def mean(self, values: NDArray[np.float64]) -> float:
        """Over all tokens."""
        return float(np.average(values, weights=self.weights))


def digest_of(plan: Plan | None) -> str:
    """What the rows of a plan are found by."""
    return FULL if plan is None else plan.digest
