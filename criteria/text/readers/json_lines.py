"""JSON lines in cells: a row belongs to the cell in which it begins."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from criteria.text.readers.pieces import Cells, Piece, RowError, TextOf, located
from criteria.text.readers.storage import InCells
from experts.errors import ExciseError

LONGEST = 2**28  # bytes; what is longer is no row


class JsonLines(InCells):
    """One file, a row a line. A row is named by its line, in a large file by the byte where it begins."""

    def __init__(self, path: Path, text_of: TextOf) -> None:
        super().__init__(path)
        self.text_of = text_of

    def read(self, size: int, wanted: Sequence[int]) -> Cells:
        alone = self.cells(size) == 1
        try:
            for cell in wanted:
                pieces: list[Piece] = []
                for number, (at, raw) in enumerate(self._lines(cell * size, (cell + 1) * size), 1):
                    pieces += self._piece(at, raw, number if alone else None)
                yield cell, pieces
        finally:
            self.data.close()

    def _piece(self, at: int, raw: bytes, number: int | None) -> list[Piece]:
        if not raw.strip():
            return []
        name = f"{self.path}:{number}" if number else f"{self.path}@{at}"
        with located(lambda: name if number else f"{self.path}:{self.data.lines_before(at) + 1}"):
            piece = self.text_of(name, parsed(self.data.decoded(raw, at)))
        return [piece] if piece else []

    def _lines(self, start: int, stop: int) -> Iterator[tuple[int, bytes]]:
        """(byte, line) of the lines that begin from start on, before stop."""
        block = self.data.at(max(0, start - 1), stop)
        skip = block.find(b"\n") + 1 if start else 0
        if (start and not skip) or skip == len(block):
            return
        at, block = max(0, start - 1) + skip, block[skip:]
        if not block.endswith(b"\n"):
            block += self._rest_of_line(at, at + len(block))
        for line in block.removesuffix(b"\n").split(b"\n"):
            yield at, line
            at += len(line) + 1

    def _rest_of_line(self, begin: int, at: int) -> bytes:
        end = self.data.find(b"\n", at, begin + LONGEST)
        if end < 0 and self.data.at(begin + LONGEST, begin + LONGEST + 1):
            what = f"a line of more than {LONGEST:,} bytes at byte {begin}"
            raise ExciseError(f"{self.path}: {what}; these are no JSON lines")
        return self.data.at(at, end if end >= 0 else begin + LONGEST)


def parsed(line: str) -> Any:
    """The value of a JSON line. Raises RowError."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RowError(f"not a JSON line ({error})") from error
