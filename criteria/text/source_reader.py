"""A source of a recipe to the reader of its text."""

import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, Any, ClassVar

from criteria.text import standard_library
from criteria.text.dataset import pieces
from criteria.text.readers.by_name import PLAIN, ROWS, files_of, reader
from criteria.text.readers.json_lines import JsonLines
from criteria.text.readers.pieces import SMALL, Listed, Piece, Reader, Shelf
from criteria.text.rows import RowText
from criteria.text.sources import Source
from experts.errors import ExciseError


@contextmanager
def opened(source: Source, text_of: RowText) -> Iterator[Reader]:
    """The reader of a source, as long as it is needed."""
    with ExitStack() as until_closed:
        if source.stdlib:
            text_of.refuse_prose(f"stdlib: {source.stdlib}")
            found = standard_library.documents(source.stdlib, source.split)  # type: ignore[arg-type]
            yield Listed([Piece(name, text) for name, text in found])
        elif source.dataset:
            yield _gathered(pieces(source, text_of), until_closed)
        else:
            texts = _once((file for path in source.text for file in files_of(path, PLAIN + ROWS)), text_of)
            rows = _once((file for path in source.jsonl for file in files_of(path, ROWS)), text_of)
            plain = [reader(file, text_of, source.separator) for file in texts]
            yield Shelf([*plain, *(reader(file, text_of, rows=True) for file in rows)])


def _once(files: Iterable[Path], text_of: RowText) -> Iterator[Path]:
    """A file that is named twice is read once: its windows would repeat."""
    seen: set[str] = set()
    for file in files:
        place = os.path.realpath(file)
        if place in seen:
            text_of.say(f"{text_of.what}: {file} is named twice, and read once")
        else:
            seen.add(place)
            yield file


def _gathered(found: Iterator[Piece], until_closed: ExitStack) -> Reader:
    """Rows that came over a network: in memory if they are few, else in a file that can be read again."""
    held: list[Piece] = []
    weight = 0
    for piece in found:
        held.append(piece)
        weight += len(piece.text.encode())
        if weight > SMALL:
            break
    else:
        return Listed(held)
    names: list[str] = []
    try:
        folder = until_closed.enter_context(tempfile.TemporaryDirectory(prefix="excise-"))
        with (Path(folder) / "rows.jsonl").open("w", encoding="utf-8") as file:
            names += _write(chain(held, found), file)
    except OSError as error:
        what = f"rows of the data set cannot be kept in a temporary file ({error.strerror or error})"
        raise ExciseError(f"{what}; take fewer documents, or set TMPDIR") from error
    return JsonLines(Path(file.name), Kept(names))


def _write(found: Iterable[Piece], file: IO[str]) -> Iterator[str]:
    """Rows by number, as long for every name: what their documents are called must not decide where cells begin."""
    for number, piece in enumerate(found):
        file.write(json.dumps([f"{number:012d}", piece.text, piece.chat]) + "\n")
        yield piece.document


class Kept:
    """Rows as `_write` wrote them. names: of their documents."""

    columns: ClassVar[list[str]] = []

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def refuse_prose(self, _where: str) -> None:
        raise AssertionError("these are rows")

    def __call__(self, _document: str, row: Any) -> Piece:
        return Piece(self.names[int(row[0])], row[1], chat=row[2])
