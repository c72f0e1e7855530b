"""JSON lines in cells: a row belongs to the cell in which it begins. No torch."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from criteria.pieces import Cells, Piece, RowError, TextOf, located
from criteria.storage import Data
from experts.errors import ExciseError

LONGEST = 2**28  # bytes; what is longer is no row


class JsonLines:
    """One file, a row a line."""

    def __init__(self, path: Path, text_of: TextOf) -> None:
        self.path, self.data, self.text_of = path, Data(path), text_of

    def weight(self, limit: int) -> int:
        return self.data.weight(limit)

    def cells(self, size: int) -> int:
        if (weight := self.data.weight(size)) <= size:
            return int(weight > 0)
        return -(-self.data.size // size)

    def read(self, size: int, wanted: Sequence[int]) -> Cells:
        numbered = self.cells(size) == 1  # the line's number is known without reading what comes before
        try:
            for cell in wanted:
                lines = self._lines(cell * size, (cell + 1) * size)
                found = (self._piece(at, raw, number if numbered else None) for number, (at, raw) in enumerate(lines, 1))
                yield cell, [piece for piece in found if piece]
        finally:
            self.data.close()

    def _piece(self, at: int, raw: bytes, number: int | None) -> Piece | None:
        if not raw.strip():
            return None
        with located(lambda: f"{self.path}:{number or self.data.lines_before(at) + 1}"):
            return self.text_of(f"{self.path}:{number}" if number else f"{self.path}@{at}", parsed(self.data.decoded(raw, at)))

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
            raise ExciseError(f"{self.path}: no line ends within {LONGEST:,} bytes from byte {begin} on; these are no JSON lines")
        return self.data.at(at, end if end >= 0 else begin + LONGEST)


def parsed(line: str) -> Any:
    """The value of a JSON line. Raises RowError."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RowError(f"not a JSON line ({error})") from error
