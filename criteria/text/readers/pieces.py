"""What readers of text return: pieces of documents, cell by cell.

A cell is a stretch of a file that can be read by itself. A small text is one cell. Of a large one only the
cells that a seed has chosen are read: the cost follows the number of windows, not the size of the file.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol

from experts.errors import ExciseError

SMALL = 2**22  # bytes; up to this a source is read whole, and a document is tokenised in one go
BLOCK = 2**20  # bytes of a cell where all of a large source is read


@dataclass(frozen=True)
class Piece:
    """Text of one document.

    Attributes:
        document: its name
        text: what is here of its text
        begins: whether the document begins here
        ends: whether the document ends here
        chat: whether a chat template wrote it, with special tokens of its own
    """

    document: str
    text: str
    begins: bool = True
    ends: bool = True
    chat: bool = False

    @property
    def whole(self) -> bool:
        """Whether this is all of the document."""
        return self.begins and self.ends


Cells = Iterator[tuple[int, list[Piece]]]  # (number of the cell, its pieces)


class Reader(Protocol):
    """A text in cells."""

    def weight(self, limit: int, /) -> int:
        """Return the bytes of text, counted as far as `limit`: more than that is only known to be more."""
        ...

    def cells(self, size: int, /) -> int:
        """Return the number of cells of `size` bytes. Some may be empty."""
        ...

    def read(self, size: int, wanted: Sequence[int], /) -> Cells:
        """Yield the pieces of some cells. No row is divided.

        Args:
            size: bytes of a cell
            wanted: numbers of the cells, ascending
        """
        ...


class TextOf(Protocol):
    """Turns rows into text."""

    @property
    def columns(self) -> list[str]:
        """Names of all columns of a row that may be read."""
        ...

    def refuse_prose(self, where: str, /) -> None:
        """Refuse plain text where it cannot be what was meant.

        Raises:
            ExciseError: rows are expected.
        """
        ...

    def __call__(self, document: str, row: Any, /) -> Piece | None:
        """Return the text of a row, None where it has none.

        Raises:
            RowError: the row holds something else.
        """
        ...


class Shelf:
    """Several readers as one, whose cells are numbered consecutively.

    Attributes:
        readers: in the order of their text
    """

    def __init__(self, readers: Sequence[Reader]) -> None:
        self.readers = readers

    def weight(self, limit: int) -> int:
        total = 0
        for reader in self.readers:
            if total > limit:
                break
            total += reader.weight(limit)
        return total

    def cells(self, size: int) -> int:
        return sum(reader.cells(size) for reader in self.readers)

    def read(self, size: int, wanted: Sequence[int]) -> Cells:
        ends = list(accumulate(reader.cells(size) for reader in self.readers))
        begins = [0, *ends]
        done = 0
        for reader, begin, end in zip(self.readers, begins, ends, strict=False):
            first, done = done, bisect_left(wanted, end)
            own = [number - begin for number in wanted[first:done]]
            if own:
                for cell, pieces in reader.read(size, own):
                    yield begin + cell, pieces


class Listed:
    """Pieces in memory, all in one cell.

    Attributes:
        pieces: in the order of the text
    """

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self.pieces = pieces

    def weight(self, _limit: int) -> int:
        return 0

    def cells(self, _size: int) -> int:
        return 1

    def read(self, _size: int, wanted: Sequence[int]) -> Cells:
        for cell in wanted:
            yield cell, list(self.pieces)


class RowError(Exception):
    """A row is wrong, raised where nobody knows which row it is; `located` adds that."""


@contextmanager
def located(where: Callable[[], str]) -> Iterator[None]:
    """Turn a RowError into an ExciseError that names the row.

    Args:
        where: returns the place of the row; called only after an error, because it may count lines
    """
    try:
        yield
    except RowError as error:
        raise ExciseError(f"{where()}: {error}") from error
