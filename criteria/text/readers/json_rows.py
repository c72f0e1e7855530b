"""What both readers of JSON share: rows in cells, each turned into a piece of text."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from criteria.text.readers.pieces import Piece, TextOf, located
from criteria.text.readers.storage import InCells

LONGEST = 2**28  # bytes, or characters; a longer line or value is no row


class JsonRows(InCells):
    """A file of rows. A row belongs to the cell in which it begins.

    Attributes:
        text_of: the text of a row
    """

    def __init__(self, path: Path, text_of: TextOf) -> None:
        super().__init__(path)
        self.text_of = text_of

    def piece(self, name: str, row: Callable[[], Any], where: Callable[[], str]) -> list[Piece]:
        """Return the piece of a row, if it has text.

        Args:
            name: of the row
            row: returns its value
            where: returns its place, for an error
        """
        with located(where):
            piece = self.text_of(name, row())
        return [piece] if piece else []
