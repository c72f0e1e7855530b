"""The raw paired rows: loss of every held-out window under every plan. Written as they come, read back after an interruption."""

import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from criteria.text import Windows
from experts.ablation import restricted
from experts.anatomy import Anatomy
from experts.errors import ExciseError
from experts.plan import Plan
from validate.loss import window_losses

COLUMNS = ("key", "plan", "digest", "window", "document", "tokens", "loss")
FULL = "full"


class Evaluator:
    """Measures plans on held-out windows, each once; rows of earlier runs with the same `key` are used again.

    path: CSV file, one row per (plan, window), losses in nats per token with all their digits. key: identity of model, text and
    precision; rows under another key are dropped.
    """

    def __init__(self, anatomy: Anatomy | None, windows: Windows, path: Path, key: str, batch: int = 8) -> None:
        self.anatomy, self.windows, self.path, self.key, self.batch = anatomy, windows, path, key, batch
        self.weights: NDArray[np.float64] = (windows.mask[:, 1:] & windows.mask[:, :-1]).sum(axis=1).astype(np.float64)
        self.known: dict[str, NDArray[np.float64]] = {}
        self._names: dict[str, str] = {}
        self._restore()

    def losses(self, plan: Plan | None) -> NDArray[np.float64]:
        """Mean cross-entropy of every window [N] under the plan; None = the unpruned model."""
        digest = _digest(plan)
        if digest not in self.known:
            self._names[digest] = FULL if plan is None else plan.criterion
            self.known[digest] = self._finite(self._measure(plan), self._names[digest])
            with self.path.open("a", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows(self._rows(digest))
        return self.known[digest]

    def _finite(self, losses: NDArray[np.float64], name: str) -> NDArray[np.float64]:
        if not np.isfinite(losses).all():
            wrong = int(np.flatnonzero(~np.isfinite(losses))[0])
            raise ExciseError(
                f"validation: the loss of window {wrong} under {name!r} is {losses[wrong]}; is the model sound in this dtype?"
            )
        return losses

    def _measure(self, plan: Plan | None) -> NDArray[np.float64]:
        assert self.anatomy is not None, "rows are missing and no model is loaded"
        if plan is None:
            return window_losses(self.anatomy.model, self.windows, self.batch)
        with restricted(self.anatomy, plan):
            return window_losses(self.anatomy.model, self.windows, self.batch)

    def _rows(self, digest: str) -> list[tuple[object, ...]]:
        plan, windows = self._names[digest], self.windows
        return [
            (self.key, plan, digest, i, windows.documents[windows.document[i]], int(self.weights[i]), repr(float(loss)))
            for i, loss in enumerate(self.known[digest])
        ]

    def _restore(self) -> None:
        """Takes over complete plans of the same key and rewrites the file without the rest."""
        found: dict[str, dict[int, float]] = {}
        if self.path.exists():
            with self.path.open(newline="", encoding="utf-8") as file:
                for row in csv.DictReader(file):
                    if row["key"] == self.key and row["loss"]:
                        found.setdefault(row["digest"], {})[int(row["window"])] = float(row["loss"])
                        self._names[row["digest"]] = row["plan"]
        complete = {digest: rows for digest, rows in found.items() if len(rows) == len(self.windows)}
        self.known = {digest: np.array([rows[i] for i in range(len(self.windows))]) for digest, rows in complete.items()}
        fresh = self.path.with_name(self.path.name + ".new")
        with fresh.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            for digest in self.known:
                writer.writerows(self._rows(digest))
        fresh.replace(self.path)


def _digest(plan: Plan | None) -> str:
    return FULL if plan is None else plan.digest
