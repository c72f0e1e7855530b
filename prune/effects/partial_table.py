"""A table that is made piece by piece: finished layers of windows wait beside the output, and become one Parquet or CSV file at the end."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from experts.errors import ExciseError
from experts.files import replacing
from prune.session.run_folder import write_json
from validate.effect_table import COLUMNS, Table

KEY = "measurement.json"
WITHOUT_TOKEN = ("position", "token", "rank")  # −1 where a row is a mean over a window: written as empty


class PartialTable:
    """output: the table; key: identity of everything that is measured. Pieces of another measurement are never mixed in."""

    def __init__(self, output: Path, key: str, force: bool = False) -> None:
        self.output, self.folder = output, output.with_name(output.name + ".partial")
        if any(self.folder.glob("*.parquet")) and self._key() != key:
            if not force:
                raise ExciseError(
                    f"{self.folder}: holds the windows of another measurement that was interrupted; finish that one, "
                    "delete the folder, or choose another --output"
                )
            shutil.rmtree(self.folder)
        self.key = key

    def _key(self) -> str | None:
        try:
            found = json.loads((self.folder / KEY).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return str(found.get("key")) if isinstance(found, dict) else None

    def missing(self, windows: int, layers: tuple[int, ...]) -> dict[int, list[int]]:
        """Window -> layers that are not there yet, or cannot be read."""
        lacking = {
            number: [layer for layer in layers if self._rows((number, layer)) is None]
            for number in range(windows)
        }
        return {number: found for number, found in lacking.items() if found}

    def keep(self, number: int, layer: int, table: Table) -> None:
        """Keeps the rows of a finished layer of a window."""
        if not (self.folder / KEY).exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / KEY, {"key": self.key})
        with replacing(self._path((number, layer))) as fresh:
            pa.parquet.write_table(_arrow(table), fresh)

    def rows(self, missing: dict[int, list[int]]) -> int:
        """Rows of these pieces together."""
        return sum(self._rows((number, layer)) or 0 for number, layers in missing.items() for layer in layers)

    def _rows(self, piece: tuple[int, int]) -> int | None:
        """Rows of a piece; None where there is none, or a kill or a full disk left a part of one."""
        try:
            return int(pa.parquet.read_metadata(self._path(piece)).num_rows)
        except (OSError, pa.ArrowException):
            return None

    def join(self, windows: int, layers: tuple[int, ...]) -> pa.Table:
        """Writes the whole table, window by window, and removes the pieces."""
        pieces = [(number, layer) for number in range(windows) for layer in layers]
        table = pa.concat_tables([pa.parquet.read_table(self._path(piece)) for piece in pieces])
        with replacing(self.output) as fresh:
            if self.output.suffix.lower() == ".csv":
                pa.csv.write_csv(table, fresh)
            else:
                pa.parquet.write_table(table, fresh)
        shutil.rmtree(
            self.folder, ignore_errors=True
        )  # the table is there: what is left of its pieces is no failure
        return table

    def _path(self, piece: tuple[int, int]) -> Path:
        number, layer = piece
        return self.folder / f"{number:06d}-{layer:03d}.parquet"


def _arrow(table: Table) -> pa.Table:
    columns = {}
    for name in COLUMNS:
        columns[name] = pa.array(
            table[name], from_pandas=True
        )  # nan, where there is no gate weight, becomes empty too
        if name in WITHOUT_TOKEN:
            columns[name] = pa.array(table[name], mask=table[name] < 0)
    return pa.table(columns)
