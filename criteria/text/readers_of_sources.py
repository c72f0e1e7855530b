"""The reader of a source's text."""

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
def source_reader(source: Source, row_text: RowText) -> Iterator[Reader]:
    """Open the reader of a source for as long as it is needed.

    Args:
        source: where the text comes from
        row_text: the text of its rows

    Raises:
        ExciseError: the text is missing or unreadable.
    """
    with ExitStack() as until_closed:
        if source.stdlib:
            yield _standard_library(source, row_text)
        elif source.dataset:
            yield _keep(pieces(source, row_text), until_closed)
        else:
            yield _files(source, row_text)


def _standard_library(source: Source, row_text: RowText) -> Reader:
    row_text.refuse_prose(f"stdlib: {source.stdlib}")
    documents = standard_library.documents(source.stdlib, source.split)  # type: ignore[arg-type]
    return Listed([Piece(name, text) for name, text in documents])


def _files(source: Source, row_text: RowText) -> Reader:
    texts = _once(_all_files(source.text, PLAIN + ROWS), row_text)
    rows = _once(_all_files(source.jsonl, ROWS), row_text)
    readers = [reader(file, row_text, source.separator) for file in texts]
    readers += [reader(file, row_text, rows=True) for file in rows]
    return Shelf(readers)


def _all_files(paths: Iterable[Path], suffixes: tuple[str, ...]) -> Iterator[Path]:
    """The files of several files and folders."""
    for path in paths:
        yield from files_of(path, suffixes)


def _once(files: Iterable[Path], row_text: RowText) -> Iterator[Path]:
    """Every file once, even if it is named twice: its windows would repeat."""
    seen: set[str] = set()
    for file in files:
        real_path = os.path.realpath(file)
        if real_path in seen:
            row_text.say(f"{row_text.what}: {file} is named twice, and read once")
        else:
            seen.add(real_path)
            yield file


def _keep(rows: Iterator[Piece], until_closed: ExitStack) -> Reader:
    """Keep rows that came over a network: few in memory, many in a file that can be read again."""
    first: list[Piece] = []
    weight = 0
    for piece in rows:
        first.append(piece)
        weight += len(piece.text.encode())
        if weight > SMALL:
            return _keep_on_disk(chain(first, rows), until_closed)
    return Listed(first)


def _keep_on_disk(rows: Iterable[Piece], until_closed: ExitStack) -> Reader:
    """Keep rows in a temporary file."""
    names: list[str] = []
    try:
        folder = until_closed.enter_context(tempfile.TemporaryDirectory(prefix="excise-"))
        path = Path(folder) / "rows.jsonl"
        with path.open("w", encoding="utf-8") as file:
            names += _write(rows, file)
    except OSError as error:
        reason = error.strerror or error
        raise ExciseError(
            f"rows of the data set cannot be kept in a temporary file ({reason}); "
            "take fewer documents, or set TMPDIR"
        ) from error
    return JsonLines(path, KeptRows(names))


def _write(rows: Iterable[Piece], file: IO[str]) -> Iterator[str]:
    """Write rows as [number, text, chat]; the names of their documents are yielded.

    All numbers have the same length, because the names of documents must not decide where cells begin.
    """
    for number, piece in enumerate(rows):
        file.write(json.dumps([f"{number:012d}", piece.text, piece.chat]) + "\n")
        yield piece.document


class KeptRows:
    """The text of rows as `_write` wrote them; a `TextOf`.

    Attributes:
        columns: none, the rows are no mappings
        names: of the documents, by the number of the row
    """

    columns: ClassVar[list[str]] = []

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def refuse_prose(self, _where: str) -> None:
        raise AssertionError("these are rows")

    def __call__(self, _document: str, row: Any) -> Piece:
        number, text, chat = row
        return Piece(self.names[int(number)], text, chat=chat)
