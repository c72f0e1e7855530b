"""A table that is made piece by piece.

Finished layers of windows wait in a folder beside the output, and become one Parquet or CSV file at the end.
"""

import itertools
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from experts.errors import ExciseError
from experts.files import replacing
from prune.session.run_folder import write_json
from validate.active_experts import Table
from validate.effect_table import COLUMNS

KEY_FILE = "measurement.json"
OF_A_TOKEN = ("position", "token", "rank")  # −1 where a row is a mean over a window; written as empty

WindowAndRow = tuple[int, int]  # window, and row of the layer among the L MoE layers


def partial_folder(output: Path) -> Path:
    """Where the pieces of a table are, and what waits on disk while they are made."""
    return output.with_name(output.name + ".partial")


class PartialTable:
    """Pieces of a table on their way to the output.

    Attributes:
        output: the table.
        folder: the pieces.
        key: identity of everything that is measured.
    """

    def __init__(self, output: Path, key: str, force: bool = False) -> None:
        """Take up the pieces of the same measurement, if there are some.

        Args:
            force: drop the pieces of another measurement.

        Raises:
            ExciseError: the folder holds pieces of another measurement.
        """
        self.output, self.folder = output, partial_folder(output)
        if any(self.folder.glob("*.parquet")) and self._key_of_pieces() != key:
            if not force:
                raise ExciseError(
                    f"{self.folder}: holds the windows of another measurement that was interrupted; "
                    "finish that one, delete the folder, or choose another --output"
                )
            shutil.rmtree(self.folder)
        self.key = key

    def _key_of_pieces(self) -> str | None:
        try:
            mark = json.loads((self.folder / KEY_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return str(mark.get("key")) if isinstance(mark, dict) else None

    def missing(self, windows: int, rows: tuple[int, ...]) -> dict[int, list[int]]:
        """What is not there yet, or cannot be read: window -> rows among the MoE layers.

        Args:
            windows: how many the table has.
            rows: the MoE layers it has, by their place among the L.
        """
        missing = {}
        for window in range(windows):
            lacking = [row for row in rows if self._length((window, row)) is None]
            if lacking:
                missing[window] = lacking
        return missing

    def keep(self, window: int, row: int, table: Table) -> None:
        """Keep the rows of a finished layer of a window."""
        if not (self.folder / KEY_FILE).exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / KEY_FILE, {"key": self.key})
        with replacing(self._path((window, row))) as fresh:
            pa.parquet.write_table(_arrow(table), fresh)

    def count_rows(self, missing: dict[int, list[int]]) -> int:
        """Rows of the table that these pieces have together."""
        count = 0
        for window, rows in missing.items():
            count += sum(self._length((window, row)) or 0 for row in rows)
        return count

    def _length(self, piece: WindowAndRow) -> int | None:
        """Rows of a piece; None where there is none, or a kill or a full disk left a part of one."""
        try:
            return int(pa.parquet.read_metadata(self._path(piece)).num_rows)
        except (OSError, pa.ArrowException):
            return None

    def join(self, windows: int, rows: tuple[int, ...]) -> pa.Table:
        """Write the whole table, window by window, and remove the pieces.

        Args:
            windows: as in `missing`.
            rows: as in `missing`.
        """
        pieces = itertools.product(range(windows), rows)
        table = pa.concat_tables([pa.parquet.read_table(self._path(piece)) for piece in pieces])
        with replacing(self.output) as fresh:
            if self.output.suffix.lower() == ".csv":
                pa.csv.write_csv(table, fresh)
            else:
                pa.parquet.write_table(table, fresh)
        # The table is there: pieces that cannot be removed are no failure.
        shutil.rmtree(self.folder, ignore_errors=True)
        return table

    def _path(self, piece: WindowAndRow) -> Path:
        window, row = piece
        return self.folder / f"{window:06d}-{row:03d}.parquet"


def _arrow(table: Table) -> pa.Table:
    """Columns of a piece. nan, where there is no gate weight, becomes empty too."""
    columns = {}
    for name in COLUMNS:
        if name in OF_A_TOKEN:
            columns[name] = pa.array(table[name], mask=table[name] < 0)
        else:
            columns[name] = pa.array(table[name], from_pandas=True)
    return pa.table(columns)
