"""What readers of text hand out: pieces of documents, cell by cell.

A cell is a stretch of a file that can be read by itself. A small text is one cell; of a large one only the
cells that a seed has chosen are read: the cost follows the number of windows and not the size of the file.
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

    begins, ends: whether the document begins and ends here; chat: a template wrote its special tokens.
    """

    document: str
    text: str
    begins: bool = True
    ends: bool = True
    chat: bool = False

    @property
    def whole(self) -> bool:
        return self.begins and self.ends


Cells = Iterator[tuple[int, list[Piece]]]


class Reader(Protocol):
    """A text in cells."""

    def weight(self, limit: int, /) -> int:
        """Bytes of text, counted as far as `limit`: more than that is only known to be more."""
        ...

    def cells(self, size: int, /) -> int:
        """How many cells of `size` bytes there are (some may be empty)."""
        ...

    def read(self, size: int, wanted: Sequence[int], /) -> Cells:
        """The pieces of the wanted cells, which must ascend. No row is divided."""
        ...


class TextOf(Protocol):
    """What turns rows into text."""

    @property
    def columns(self) -> list[str]:
        """Names of everything that is looked at in a row."""
        ...

    def refuse_prose(self, where: str, /) -> None:
        """Raises ExciseError where plain text cannot be what was meant."""
        ...

    def __call__(self, document: str, row: Any, /) -> Piece | None:
        """The text of a row, None where it has none. Raises RowError."""
        ...


class Shelf:
    """Several readers as one: their cells are counted through."""

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
        at = 0
        for reader, begin, end in zip(self.readers, [0, *ends], ends, strict=False):
            first, at = at, bisect_left(wanted, end)
            if at > first:
                for cell, pieces in reader.read(size, [number - begin for number in wanted[first:at]]):
                    yield begin + cell, pieces


class Listed:
    """Pieces in memory, all in one cell."""

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
    """What is wrong with a row, from where nobody knows which row it is; `located` adds that."""


@contextmanager
def located(where: Callable[[], str]) -> Iterator[None]:
    """Turns a RowError into an ExciseError that says where the row is; asked only then: it counts lines."""
    try:
        yield
    except RowError as error:
        raise ExciseError(f"{where()}: {error}") from error
