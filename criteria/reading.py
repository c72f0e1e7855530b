"""A source of a recipe to the reader of its text."""

import json
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, Any, ClassVar

from criteria import stdlib
from criteria.dataset import pieces
from criteria.formats import PLAIN, ROWS, files_of, reader
from criteria.json_lines import JsonLines
from criteria.pieces import SMALL, Listed, Piece, Reader, Shelf
from criteria.rows import RowText
from criteria.sources import Source
from experts.errors import ExciseError


@contextmanager
def opened(source: Source, text_of: RowText) -> Iterator[Reader]:
    """The reader of a source, as long as it is needed."""
    if source.stdlib:
        text_of.refuse_prose(f"stdlib: {source.stdlib}")
        found = stdlib.documents(source.stdlib, source.split)  # type: ignore[arg-type]
        yield Listed([Piece(name, text) for name, text in found])
    elif source.dataset:
        with tempfile.TemporaryDirectory(prefix="excise-") as folder:
            yield _gathered(pieces(source, text_of), Path(folder) / "rows.jsonl")
    else:
        texts = [file for path in source.text for file in files_of(path, PLAIN + ROWS)]
        rows = [file for path in source.jsonl for file in files_of(path, ROWS)]
        yield Shelf(
            [
                *(reader(file, text_of, source.separator) for file in texts),
                *(reader(file, text_of, rows=True) for file in rows),
            ]
        )


def _gathered(found: Iterator[Piece], beside: Path) -> Reader:
    """Rows that came over a network: in memory where they are few, else in a file, of which cells can be read again."""
    held: list[Piece] = []
    weight = 0
    for piece in found:
        held.append(piece)
        weight += len(piece.text.encode())
        if weight > SMALL:
            break
    else:
        return Listed(held)
    try:
        with beside.open("w", encoding="utf-8") as file:
            _write(chain(held, found), file)
    except OSError as error:
        raise ExciseError(
            f"{beside.parent}: rows of the data set cannot be kept there ({error.strerror or error}); take fewer documents, or set TMPDIR"
        ) from error
    return JsonLines(beside, Kept())


def _write(found: Iterable[Piece], file: IO[str]) -> None:
    for piece in found:
        file.write(json.dumps([piece.document, piece.text, piece.chat]) + "\n")


class Kept:
    """Rows as `_write` wrote them."""

    columns: ClassVar[list[str]] = []

    def refuse_prose(self, _where: str) -> None:
        raise AssertionError("these are rows")

    def __call__(self, _document: str, row: Any) -> Piece:
        return Piece(row[0], row[1], chat=row[2])
