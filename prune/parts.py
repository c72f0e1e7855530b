"""A table that is made window by window: finished windows wait beside the output, and become one Parquet or CSV file at the end."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from experts.errors import ExciseError
from prune.stages import write_json
from validate.effects import COLUMNS, Table

KEY = "measurement.json"
WITHOUT_TOKEN = ("position", "token", "rank")  # −1 where a row is a mean over a window: written as empty


class Parts:
    """output: the table; key: identity of everything that is measured. Windows of another measurement are never mixed in."""

    def __init__(self, output: Path, key: str, force: bool = False) -> None:
        self.output, self.folder = output, output.with_name(output.name + ".partial")
        if self.folder.exists() and self._key() != key:
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

    def missing(self, windows: int) -> list[int]:
        """Numbers of the windows that are not there yet."""
        return [number for number in range(windows) if not self._path(number).is_file()]

    def keep(self, number: int, table: Table) -> None:
        """Keeps the rows of a finished window."""
        if not self.folder.exists():
            self.folder.mkdir(parents=True)
            write_json(self.folder / KEY, {"key": self.key})
        fresh = self._path(number).with_suffix(".new")
        pa.parquet.write_table(_arrow(table), fresh)
        fresh.replace(self._path(number))

    def rows(self, windows: list[int]) -> int:
        """Rows of these windows together."""
        return sum(pa.parquet.read_metadata(self._path(number)).num_rows for number in windows)

    def join(self, windows: int) -> pa.Table:
        """Writes the whole table, in the order of the windows, and removes the parts."""
        table = pa.concat_tables([pa.parquet.read_table(self._path(number)) for number in range(windows)])
        fresh = self.output.with_name(self.output.name + ".new")
        try:
            if self.output.suffix == ".csv":
                pa.csv.write_csv(table, fresh)
            else:
                pa.parquet.write_table(table, fresh)
            fresh.replace(self.output)
        finally:
            fresh.unlink(missing_ok=True)
        shutil.rmtree(self.folder)
        return table

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.parquet"


def _arrow(table: Table) -> pa.Table:
    columns = {}
    for name in COLUMNS:
        columns[name] = pa.array(table[name], from_pandas=True)  # nan, where there is no gate weight, becomes empty too
        if name in WITHOUT_TOKEN:
            columns[name] = pa.array(table[name], mask=table[name] < 0)
    return pa.table(columns)
