"""The raw paired rows on disk: a CSV file with a line per (plan, row), written as the rows come.

After an interruption the complete plans are read back. A file of other rows is never mixed in: every line has
the key of what it was measured with.
"""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from experts.arrays import Array
from experts.errors import naming
from experts.files import replacing

# Names of documents may hold bytes that are no UTF-8; a kill may leave half a character.
UNDECODABLE = "surrogateescape"


@dataclass
class PlanRows:
    """The values of one plan, as read from the file.

    Attributes:
        name: the plan's name, for a human reader of the file
        values: value by the label of its row
    """

    name: str
    values: dict[tuple[str, ...], float] = field(default_factory=dict)


class RowFile:
    """A CSV file with the columns key, plan, digest, those of a row's label, and the value.

    Attributes:
        path: the file
        key: identity of model, data and precision. Lines under another key are dropped.
        columns: what names a row: the columns of its label
        value: name of the last column: what was measured
        labels: one label per row, the same for every plan [N]
        later: of the columns, those that files of earlier versions lack; the others name a row as well
    """

    def __init__(
        self,
        path: Path,
        key: str,
        columns: tuple[str, ...],
        value: str,
        labels: Sequence[tuple[object, ...]],
        later: tuple[str, ...] = (),
    ) -> None:
        self.path, self.key, self.later = path, key, later
        self.columns, self.value = columns, value
        self.labels = [tuple(map(str, label)) for label in labels]

    def restore(self) -> dict[str, Array]:
        """Take over the complete plans of the same key, and rewrite the file without the rest.

        Returns:
            Values of every row [N] by the plan's digest.
        """
        complete = {digest: rows for digest, rows in self._read().items() if self._is_complete(rows)}
        values = {digest: self._in_order(rows) for digest, rows in complete.items()}
        with (
            replacing(self.path) as fresh,
            fresh.open("w", newline="", encoding="utf-8", errors=UNDECODABLE) as file,
        ):
            writer = csv.writer(file)
            writer.writerow(("key", "plan", "digest", *self.columns, self.value))
            for digest, rows in complete.items():
                writer.writerows(self._lines(digest, rows.name, values[digest]))
        return values

    def append(self, digest: str, name: str, values: Array) -> None:
        """Write a plan's values [N], with all their digits."""
        with (
            naming(self.path),
            self.path.open("a", newline="", encoding="utf-8", errors=UNDECODABLE) as file,
        ):
            csv.writer(file).writerows(self._lines(digest, name, values))

    def _read(self) -> dict[str, PlanRows]:
        """Every line of the same key, by the plan's digest; nothing of a damaged file."""
        if not self.path.exists():
            return {}
        # A kill may have left half a number at the end.
        text = self.path.read_text(encoding="utf-8", errors=UNDECODABLE).rpartition("\n")[0]
        plans: dict[str, PlanRows] = {}
        try:
            lines = csv.DictReader(io.StringIO(text))
            named, labels = self._labels_by(lines.fieldnames or ())
            for line in lines:
                if line["key"] == self.key:
                    name = tuple(line[column] for column in named)
                    rows = plans.setdefault(line["digest"], PlanRows(line["plan"]))
                    rows.values[labels.get(name, name)] = float(line[self.value])
        except (KeyError, TypeError, ValueError, csv.Error):
            return {}
        return plans

    def _labels_by(self, header: Sequence[str]) -> tuple[list[str], dict[tuple[str, ...], tuple[str, ...]]]:
        """The columns by which a file names its rows, and every row's whole label by its name there."""
        missing = set(self.later) - set(header)
        places = [place for place, column in enumerate(self.columns) if column not in missing]
        labels = {tuple(label[place] for place in places): label for label in self.labels}
        return [self.columns[place] for place in places], labels

    def _is_complete(self, rows: PlanRows) -> bool:
        return rows.values.keys() == set(self.labels)

    def _in_order(self, rows: PlanRows) -> Array:
        return np.array([rows.values[label] for label in self.labels])

    def _lines(self, digest: str, name: str, values: Array) -> Iterable[tuple[str, ...]]:
        for label, value in zip(self.labels, values, strict=True):
            yield (self.key, name, digest, *label, repr(float(value)))
