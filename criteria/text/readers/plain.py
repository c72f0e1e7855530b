"""Plain text files in cells. A regular expression may start a new document; else a file is a document."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from criteria.text.readers.pieces import BLOCK, Cells, Piece
from criteria.text.readers.storage import InCells

CONTEXT = 2**12  # bytes on either side of a cell that a separator may look at
NEAR = 2**12  # bytes in which a place between words is looked for; no cell is shorter
BETWEEN_WORDS = re.compile(rb"(?<!\r)[ \t\r\n]")


@dataclass(frozen=True)
class Stretch:
    """The text of a cell.

    Attributes:
        text: from a place between words to another
        begin: the byte of the file where it begins
        starts: places in `text` where a document starts
        last: whether the file ends here
    """

    text: str
    begin: int
    starts: tuple[int, ...]
    last: bool

    @property
    def alone(self) -> bool:
        """Whether this is the whole file."""
        return self.begin == 0 and self.last

    def starts_at(self, place: int) -> bool:
        """Whether a document starts at a place of the text."""
        return place in self.starts or (self.begin == 0 and place == 0)


class PlainText(InCells):
    """A file of plain text.

    Cells begin between words, so that a cell is tokenised as it would be inside the text.

    Attributes:
        separator: starts a new document; None for one document
    """

    def __init__(self, path: Path, separator: str = "") -> None:
        super().__init__(path)
        self.separator = re.compile(separator, re.MULTILINE) if separator else None
        self._open: dict[int, int] = {}  # cell -> byte where the document starts that reaches into it

    def read(self, size: int, wanted: Sequence[int]) -> Cells:
        self._open = {}
        asked = set(wanted)
        try:
            for cell in self._visited_cells(wanted):
                pieces = list(self._pieces(cell, size))
                if cell in asked:
                    yield cell, pieces
        finally:
            self.data.close()

    def _visited_cells(self, wanted: Sequence[int]) -> Sequence[int]:
        """The wanted cells, or all before them where documents have to be found in a compressed file.

        They are unpacked anyway, and looking back for the start of a document would unpack them again.
        """
        if self.separator and self.data.forward and wanted:
            return range(wanted[-1] + 1)
        return wanted

    def _pieces(self, cell: int, size: int) -> Iterator[Piece]:
        """The documents of a cell."""
        stretch = self._stretch(cell, size)
        places = list(self._places(cell, size, stretch)) if self.separator else [("", 0)]
        bounds = [place for _, place in places] + [len(stretch.text)]
        for (mark, _), (start, stop) in zip(places, pairwise(bounds), strict=True):
            text = stretch.text[start:stop]
            begins = stretch.starts_at(start)
            ends = stop < len(stretch.text) or stretch.last
            if text.strip() or not (begins and ends):
                yield Piece(f"{self.path}{mark}", text, begins, ends)

    def _places(self, cell: int, size: int, stretch: Stretch) -> Iterator[tuple[str, int]]:
        """(what to add to the file's name, place in the text) of every document of a cell.

        A document is named by its number in a file of one cell, else by the byte where it starts.
        """
        byte, done = stretch.begin, 0
        for number, place in enumerate(sorted({0, *stretch.starts})):
            byte += len(stretch.text[done:place].encode())
            done = place
            start = byte if stretch.starts_at(place) else self._start_before(cell, size)
            self._open[cell + 1] = start
            yield (f"#{number}" if stretch.alone else f"@{start}"), place

    def _start_before(self, cell: int, size: int) -> int:
        """The byte where the document starts that reaches into a cell. No cell is looked through twice."""
        last = cell
        step = max(1, BLOCK // size)  # cells
        start: int | None = None
        while start is None and last > 0:
            first = max(0, last - step)
            if not self._no_start_in(first, last, size):
                start = self._last_start(first, last, size)
            last = first
        self._open[cell] = start or 0
        return self._open[cell]

    def _last_start(self, first: int, last: int, size: int) -> int | None:
        """The byte where the last document starts in or before some cells, as far as they show it."""
        for cell in range(last, first, -1):
            if cell in self._open:
                return self._open[cell]
            stretch = self._stretch(cell - 1, size)
            if stretch.starts:
                return stretch.begin + len(stretch.text[: stretch.starts[-1]].encode())
        return None

    def _no_start_in(self, first: int, last: int, size: int) -> bool:
        """Whether cells can be passed over at once: no document starts in them, and none of them is known."""
        any_known = not self._open.keys().isdisjoint(range(first, last + 1))
        if first < 1 or self.data.forward or any_known:
            return False
        assert self.separator is not None, "asked for only where there is one"
        text = self._context(first * size - CONTEXT, last * size + 2 * CONTEXT)
        return self.separator.search(text) is None

    def _stretch(self, cell: int, size: int) -> Stretch:
        """The text of a cell."""
        # In this order, because a compressed file can only be read forwards.
        begin = self._edge(self.data.at(cell * size - 1, cell * size + NEAR), cell * size) if cell else 0
        before = self._context(max(0, begin - CONTEXT), begin)
        raw = self.data.at(begin, (cell + 1) * size + NEAR)
        rest = (cell + 1) * size - begin
        length = self._edge(raw[rest - 1 :], rest) if rest < len(raw) else len(raw)
        end = begin + length
        text = self.data.decoded(raw[:length], begin)
        after = self._context(end, end + CONTEXT)
        starts = self._starts(before, text, after) if self.separator else ()
        return Stretch(text, begin, starts, last=not self.data.at(end, end + 1))

    @staticmethod
    def _edge(near: bytes, offset: int) -> int:
        """The first place between words from an offset on; between characters where there is none near.

        Args:
            near: the bytes there, from one before the offset
            offset: where to begin
        """
        if len(near) < 2:
            return offset - 1 + len(near)
        if match := BETWEEN_WORDS.search(near, 1, NEAR + 1):
            return offset - 1 + match.start()
        return offset + next((i for i, byte in enumerate(near[1:5]) if _begins_character(byte)), 0)

    def _starts(self, before: str, text: str, after: str) -> tuple[int, ...]:
        """Places of a text where a document starts; the separator may look at the text before and after."""
        assert self.separator is not None, "asked for only where there is one"
        matches = self.separator.finditer(before + text + after)
        places = {match.start() - len(before) for match in matches}
        return tuple(sorted(place for place in places if 0 <= place < len(text)))

    def _context(self, start: int, stop: int) -> str:
        """Text beside a cell, which may begin and end within a character."""
        text = self.data.at(start, stop).decode("utf-8", errors="ignore")
        return text.replace("\r\n", "\n").replace("\r", "\n")


def _begins_character(byte: int) -> bool:
    """Whether a byte of UTF-8 begins a character: continuation bytes are 10xxxxxx."""
    return byte & 0xC0 != 0x80
