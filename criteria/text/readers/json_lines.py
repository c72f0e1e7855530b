"""JSON lines in cells: a row belongs to the cell in which it begins."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from criteria.text.readers.json_rows import LONGEST, JsonRows
from criteria.text.readers.pieces import Cells, Piece, RowError
from experts.errors import ExciseError


class JsonLines(JsonRows):
    """A file with one row per line.

    A row is named by its line; in a file of several cells by the byte where it begins.
    """

    def read(self, size: int, wanted: Sequence[int]) -> Cells:
        only_cell = self.cells(size) == 1
        try:
            for cell in wanted:
                pieces: list[Piece] = []
                lines = self._lines(cell * size, (cell + 1) * size)
                for number, (begin, raw) in enumerate(lines, 1):
                    pieces += self._piece(begin, raw, number if only_cell else None)
                yield cell, pieces
        finally:
            self.data.close()

    def _piece(self, begin: int, raw: bytes, number: int | None) -> list[Piece]:
        """The piece of a line, if it has text. `number` of the line, if it is known."""
        if not raw.strip():
            return []
        name = f"{self.path}:{number}" if number else f"{self.path}@{begin}"

        def row() -> Any:
            return parse_line(self.data.decoded(raw, begin))

        def where() -> str:
            return name if number else f"{self.path}:{self.data.lines_before(begin) + 1}"

        return self.piece(name, row, where)

    def _lines(self, start: int, stop: int) -> Iterator[tuple[int, bytes]]:
        """(byte where it begins, line) of the lines that begin from start on, before stop."""
        from_byte = max(0, start - 1)
        block = self.data.at(from_byte, stop)
        skipped = block.find(b"\n") + 1 if start else 0
        if (start and not skipped) or skipped == len(block):
            return
        begin = from_byte + skipped
        block = block[skipped:]
        if not block.endswith(b"\n"):
            block += self._rest_of_line(begin, begin + len(block))
        for line in block.removesuffix(b"\n").split(b"\n"):
            yield begin, line
            begin += len(line) + 1

    def _rest_of_line(self, begin: int, known: int) -> bytes:
        """The rest of a line that is known up to a byte.

        Args:
            begin: the byte where it begins; a line has at most LONGEST bytes
            known: the byte behind what is known
        """
        end = self.data.find(b"\n", known, begin + LONGEST)
        if end < 0 and self.data.at(begin + LONGEST, begin + LONGEST + 1):
            what = f"a line of more than {LONGEST:,} bytes at byte {begin}"
            raise ExciseError(f"{self.path}: {what}; these are no JSON lines")
        return self.data.at(known, end if end >= 0 else begin + LONGEST)


def parse_line(line: str) -> Any:
    """Return the value of a JSON line.

    Raises:
        RowError: it is not valid JSON.
    """
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RowError(f"not a JSON line ({error})") from error
