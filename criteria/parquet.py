"""Parquet files in cells of rows. Only the columns that hold text are read, and only the row groups that are asked for. No torch."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from criteria.pieces import Cells, Piece, TextOf, located
from criteria.storage import STEP
from experts.errors import ExciseError, one_line

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
            self.bytes = int(sum(max(0, group.total_byte_size) for group in groups))
        if not self.columns:
            with located(lambda: str(path)):
                text_of(str(path), dict.fromkeys(names))

    def weight(self, _limit: int) -> int:
        return self.bytes

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
                if inside := [cell for cell in wanted if begin <= cell < end]:
                    batches = file.iter_batches(min(rows, BATCH), row_groups=[group], columns=self.columns, use_threads=False)
                    first = sum(self.groups[:group])
                    yield from self._cells_of({cell: [] for cell in inside}, begin, first, rows, batches)

    def _cells_of(
        self,
        found: dict[int, list[Piece]],
        begin: int,
        number: int,
        rows: int,
        batches: Iterator[pa.RecordBatch],
    ) -> Cells:
        """The wanted cells of one group: `found` is filled and handed out. begin: the group's first cell; number: its first row."""
        done = 0
        for batch in batches:
            cells = [begin + row // rows for row in range(done, done + len(batch))]
            if not found.keys().isdisjoint(cells):
                for row, (cell, values) in enumerate(zip(cells, batch.to_pylist(), strict=True), number + done):
                    if cell in found:
                        found[cell] += self._piece(row, values)
            done += len(batch)
            for cell in [cell for cell in found if (cell - begin + 1) * rows <= done]:
                yield cell, found.pop(cell)
            if not found:
                return
        yield from list(found.items())

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
        raise ExciseError(f"{path}: not a readable parquet file ({one_line(error)}); download or write it again") from error
