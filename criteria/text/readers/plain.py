"""Plain text files in cells. A regular expression may start a new document; else a file is one."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from criteria.text.readers.pieces import BLOCK, Cells, Piece
from criteria.text.readers.storage import InCells

CONTEXT = 2**12  # bytes on either side of a cell that a separator may look at
NEAR = 2**12  # bytes in which a place between words is looked for; no cell is shorter
BETWEEN = re.compile(rb"(?<!\r)[ \t\r\n]")


@dataclass(frozen=True)
class Stretch:
    """The text of a cell.

    begin: its byte in the file; starts: where in it a document starts; last: the file ends here.
    """

    text: str
    begin: int
    starts: tuple[int, ...]
    last: bool

    @property
    def alone(self) -> bool:
        return self.begin == 0 and self.last


class PlainText(InCells):
    """One file. Cells begin between words, so that a cell is tokenised as it would be inside the text."""

    def __init__(self, path: Path, separator: str = "") -> None:
        super().__init__(path)
        self.separator = re.compile(separator, re.MULTILINE) if separator else None
        self._open: dict[int, int] = {}  # cell -> byte where the document starts that reaches into it

    def read(self, size: int, wanted: Sequence[int]) -> Cells:
        self._open = {}
        # What is compressed passes by anyway; to look back for a document's start would unpack it again.
        passed = range(wanted[-1] + 1) if self.separator and self.data.forward and wanted else wanted
        asked = set(wanted)
        try:
            for cell in passed:
                pieces = list(self._pieces(cell, size))
                if cell in asked:
                    yield cell, pieces
        finally:
            self.data.close()

    def _pieces(self, cell: int, size: int) -> Iterator[Piece]:
        stretch = self._stretch(cell, size)
        places = list(self._places(cell, size, stretch)) if self.separator else [("", 0)]
        bounds = [start for _, start in places] + [len(stretch.text)]
        for (mark, _), (start, stop) in zip(places, pairwise(bounds), strict=True):
            begins = start in stretch.starts or (stretch.begin == 0 and start == 0)
            ends = stop < len(stretch.text) or stretch.last
            if stretch.text[start:stop].strip() or not (begins and ends):
                yield Piece(f"{self.path}{mark}", stretch.text[start:stop], begins, ends)

    def _places(self, cell: int, size: int, stretch: Stretch) -> Iterator[tuple[str, int]]:
        """(what to add to the file's name, place in the text) of every document of a cell."""
        byte, done = stretch.begin, 0
        for number, start in enumerate(sorted({0, *stretch.starts})):
            byte, done = byte + len(stretch.text[done:start].encode()), start
            fresh = start in stretch.starts or stretch.begin == 0
            where = byte if fresh else self._before(cell, size)
            self._open[cell + 1] = where
            yield (f"#{number}" if stretch.alone else f"@{where}"), start

    def _before(self, cell: int, size: int) -> int:
        """The byte where the document starts that reaches into a cell. No cell is looked through twice."""
        at, many = cell, max(1, BLOCK // size)
        found: int | None = None
        while found is None and at > 0:
            first = max(0, at - many)
            if not self._none_in(first, at, size):
                found = self._last_start(first, at, size)
            at = first
        self._open[cell] = found or 0
        return self._open[cell]

    def _last_start(self, first: int, last: int, size: int) -> int | None:
        """The byte where the last document starts in or before some cells, as far as it shows there."""
        for cell in range(last, first, -1):
            if cell in self._open:
                return self._open[cell]
            stretch = self._stretch(cell - 1, size)
            if stretch.starts:
                return stretch.begin + len(stretch.text[: stretch.starts[-1]].encode())
        return None

    def _none_in(self, first: int, last: int, size: int) -> bool:
        """Whether many cells can be passed over: no document starts in any, and none of them is known."""
        if first < 1 or self.data.forward or not self._open.keys().isdisjoint(range(first, last + 1)):
            return False
        assert self.separator is not None, "asked for only where there is one"
        return self.separator.search(self._beside(first * size - CONTEXT, last * size + 2 * CONTEXT)) is None

    def _stretch(self, cell: int, size: int) -> Stretch:
        # In this order, because a compressed file can only be read forwards.
        begin = self._edge(self.data.at(cell * size - 1, cell * size + NEAR), cell * size) if cell else 0
        before = self._beside(max(0, begin - CONTEXT), begin)
        raw = self.data.at(begin, (cell + 1) * size + NEAR)
        rest = (cell + 1) * size - begin
        end = self._edge(raw[rest - 1 :], rest) if rest < len(raw) else len(raw)
        text = self.data.decoded(raw[:end], begin)
        after = self._beside(begin + end, begin + end + CONTEXT)
        starts = self._starts(before, text, after) if self.separator else ()
        return Stretch(text, begin, starts, not self.data.at(begin + end, begin + end + 1))

    @staticmethod
    def _edge(near: bytes, offset: int) -> int:
        """The first place between words from an offset on; between characters where there is none near.

        near: what stands there, from one byte before.
        """
        if len(near) < 2:
            return offset - 1 + len(near)
        if found := BETWEEN.search(near, 1, NEAR + 1):
            return offset - 1 + found.start()
        return offset + next((i for i, byte in enumerate(near[1:5]) if byte & 0xC0 != 0x80), 0)

    def _starts(self, before: str, text: str, after: str) -> tuple[int, ...]:
        assert self.separator is not None, "asked for only where there is one"
        places = (match.start() - len(before) for match in self.separator.finditer(before + text + after))
        return tuple(sorted({place for place in places if 0 <= place < len(text)}))

    def _beside(self, start: int, stop: int) -> str:
        """Text beside a cell, which may begin and end within a character."""
        text = self.data.at(start, stop).decode("utf-8", errors="ignore")
        return text.replace("\r\n", "\n").replace("\r", "\n")
