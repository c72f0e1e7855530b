"""Parquet files in cells of rows. Only columns with text are read, of the row groups asked for."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from criteria.text.readers.pieces import Cells, Piece, TextOf, located
from criteria.text.readers.storage import STEP
from experts.errors import ExciseError, one_line

FIRST = 64  # rows by which the text of all is estimated
BATCH = 2**12  # rows that are in memory at once


class Parquet:
    """One file. A cell is some rows of one row group."""

    def __init__(self, path: Path, text_of: TextOf) -> None:
        self.path, self.text_of = path, text_of
        with _readable(path), pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            self.columns = [name for name in dict.fromkeys(text_of.columns) if name in names]
            # Not the bytes of single columns: asked for those of a damaged file, pyarrow ends the process.
            groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
            self.groups = [max(0, group.num_rows) for group in groups]
            encoded = int(sum(max(0, group.total_byte_size) for group in groups))
            self.bytes = max(encoded, self._decoded(file)) if self.columns else encoded
        if not self.columns:
            with located(lambda: str(path)):
                text_of(str(path), dict.fromkeys(names))

    def _decoded(self, file: Any) -> int:
        """Bytes of the text, by the first rows: a text that every row repeats is stored once, and read as often as it stands."""
        options = {"columns": self.columns, "use_threads": False}
        group = next((number for number, rows in enumerate(self.groups) if rows), None)
        if group is None:
            return 0
        first = next(file.iter_batches(FIRST, row_groups=[group], **options), None)
        return int(first.nbytes * sum(self.groups) // len(first)) if first is not None and len(first) else 0

    def weight(self, _limit: int) -> int:
        return int(self.bytes)

    def cells(self, size: int) -> int:
        return sum(self._cells(size))

    def _cells(self, size: int) -> list[int]:
        rows = self._rows(size)
        return [-(-group // rows) for group in self.groups]

    def _rows(self, size: int) -> int:
        """Rows of a cell: as many as have `size` bytes on average."""
        return int(max(1, size * sum(self.groups) // max(1, self.bytes)))

    def read(self, size: int, wanted: Sequence[int]) -> Cells:
        rows, ends = self._rows(size), list(accumulate(self._cells(size)))
        with _readable(self.path), pq.ParquetFile(self.path, buffer_size=STEP) as file:
            for group, (begin, end) in enumerate(zip([0, *ends], ends, strict=False)):
                inside = wanted[bisect_left(wanted, begin) : bisect_left(wanted, end)]
                if inside:
                    asked = {cell - begin for cell in inside}
                    pieces = self._pieces(self._rows_of(file, group, rows), asked, rows)
                    yield from ((begin + cell, found) for cell, found in pieces)

    def _rows_of(self, file: Any, group: int, rows: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        """(number in the file of its first row, rows) of the batches of a row group."""
        number = sum(self.groups[:group])
        columns = {"columns": self.columns, "use_threads": False}
        for batch in file.iter_batches(min(rows, BATCH), row_groups=[group], **columns):
            yield number, batch
            number += len(batch)

    def _pieces(self, batches: Iterator[tuple[int, pa.RecordBatch]], asked: set[int], rows: int) -> Cells:
        """The cells that are asked for of one row group, counted from its begin."""
        found: dict[int, list[Piece]] = {cell: [] for cell in asked}
        done = 0
        for number, batch in batches:
            cells = [row // rows for row in range(done, done + len(batch))]
            if not found.keys().isdisjoint(cells):
                for row, (cell, values) in enumerate(zip(cells, batch.to_pylist(), strict=True), number):
                    if cell in found:
                        found[cell] += self._piece(row, values)
            done += len(batch)
            for cell in sorted(cell for cell in found if (cell + 1) * rows <= done):
                yield cell, found.pop(cell)
            if not found:
                return
        yield from sorted(found.items())

    def _piece(self, number: int, row: dict[str, Any]) -> list[Piece]:
        name = f"{self.path}[{number}]"
        with located(lambda: name):
            piece = self.text_of(name, row)
        return [piece] if piece else []


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError, ArithmeticError) as error:
        what = f"{path}: not a readable parquet file ({one_line(error)})"
        raise ExciseError(f"{what}; get or write it again") from error
