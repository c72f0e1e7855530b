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

FIRST_ROWS = 64  # by which the bytes of all are estimated
BATCH_ROWS = 2**12  # that are in memory at once


class Parquet:
    """A parquet file. A cell is some rows of one row group; a row is named by its number.

    Attributes:
        path: of the file
        text_of: the text of a row
        columns: that are read
        groups: number of rows of each row group
        bytes: of the text, estimated
    """

    def __init__(self, path: Path, text_of: TextOf) -> None:
        self.path, self.text_of = path, text_of
        with _readable(path), pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            self.columns = [name for name in dict.fromkeys(text_of.columns) if name in names]
            # Not the bytes of single columns: asked for those of a damaged file, pyarrow ends the process.
            groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
            self.groups = [max(0, group.num_rows) for group in groups]
            encoded = int(sum(max(0, group.total_byte_size) for group in groups))
            self.bytes = max(encoded, self._decoded_bytes(file)) if self.columns else encoded
        if not self.columns:
            with located(lambda: str(path)):
                text_of(str(path), dict.fromkeys(names))  # says which columns there are

    def _decoded_bytes(self, file: Any) -> int:
        """Bytes of the text, estimated by the first rows.

        They can be more than those of the file: a text that every row repeats is stored once.
        """
        group = next((number for number, rows in enumerate(self.groups) if rows), None)
        if group is None:
            return 0
        first = next(self._batches(file, group, FIRST_ROWS), None)
        if first is None or not len(first):
            return 0
        return int(first.nbytes * sum(self.groups) // len(first))

    def weight(self, _limit: int) -> int:
        return int(self.bytes)

    def cells(self, size: int) -> int:
        return sum(self._cells_of_groups(size))

    def _cells_of_groups(self, size: int) -> list[int]:
        """Number of cells of each row group."""
        rows = self._rows_per_cell(size)
        return [-(-group // rows) for group in self.groups]

    def _rows_per_cell(self, size: int) -> int:
        """As many rows as have `size` bytes on average."""
        return int(max(1, size * sum(self.groups) // max(1, self.bytes)))

    def read(self, size: int, wanted: Sequence[int]) -> Cells:
        rows = self._rows_per_cell(size)
        ends = list(accumulate(self._cells_of_groups(size)))
        begins = [0, *ends]
        with _readable(self.path), pq.ParquetFile(self.path, buffer_size=STEP) as file:
            for group, (begin, end) in enumerate(zip(begins, ends, strict=False)):
                inside = wanted[bisect_left(wanted, begin) : bisect_left(wanted, end)]
                if not inside:
                    continue
                asked = {cell - begin for cell in inside}
                for cell, pieces in self._pieces(self._numbered_batches(file, group, rows), asked, rows):
                    yield begin + cell, pieces

    def _batches(self, file: Any, group: int, rows: int) -> Iterator[pa.RecordBatch]:
        """The rows of a row group, at most so many at once."""
        batches: Iterator[pa.RecordBatch] = file.iter_batches(
            rows, row_groups=[group], columns=self.columns, use_threads=False
        )
        return batches

    def _numbered_batches(self, file: Any, group: int, rows: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        """(number of its first row in the file, batch) of the batches of a row group."""
        number = sum(self.groups[:group])
        for batch in self._batches(file, group, min(rows, BATCH_ROWS)):
            yield number, batch
            number += len(batch)

    def _pieces(self, batches: Iterator[tuple[int, pa.RecordBatch]], asked: set[int], rows: int) -> Cells:
        """The cells of one row group that are asked for.

        Args:
            batches: of the row group, with the number of their first row
            asked: cells, counted from the beginning of the row group
            rows: per cell
        """
        pieces: dict[int, list[Piece]] = {cell: [] for cell in asked}
        done = 0
        for number, batch in batches:
            cells = [row // rows for row in range(done, done + len(batch))]
            if not pieces.keys().isdisjoint(cells):
                for row, (cell, values) in enumerate(zip(cells, batch.to_pylist(), strict=True), number):
                    if cell in pieces:
                        pieces[cell] += self._piece(row, values)
            done += len(batch)
            complete = [cell for cell in pieces if (cell + 1) * rows <= done]
            for cell in sorted(complete):
                yield cell, pieces.pop(cell)
            if not pieces:
                return
        yield from sorted(pieces.items())

    def _piece(self, number: int, row: dict[str, Any]) -> list[Piece]:
        name = f"{self.path}[{number}]"
        with located(lambda: name):
            piece = self.text_of(name, row)
        return [piece] if piece else []


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Name the file in whatever goes wrong while it is read."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError, ArithmeticError) as error:
        what = f"{path}: not a readable parquet file ({one_line(error)})"
        raise ExciseError(f"{what}; get or write it again") from error
