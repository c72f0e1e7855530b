"""Data sets: of the hub, streamed, and files and folders of this machine."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from criteria.text.dataset_library import TABLES, Library, table_suffix
from criteria.text.readers.by_name import ROWS, files_of, reader
from criteria.text.readers.pieces import BLOCK, Piece, located
from criteria.text.rows import RowText
from criteria.text.sources import Source
from criteria.text.splits import SplitPart, split_parts
from experts.errors import ExciseError


def pieces(source: Source, row_text: RowText) -> Iterator[Piece]:
    """Yield the text of a data set's rows: the first `documents`, or all of a part like train[:200].

    Args:
        source: names the data set
        row_text: the text of its rows

    Raises:
        ExciseError: the data set cannot be read, or lacks the split.
    """
    for library in ("datasets", "huggingface_hub"):
        logging.getLogger(library).setLevel(logging.ERROR)  # a folder without a card is no mistake
    dataset = DataSet(source)
    wanted = dataset.parts()
    bounded = all(part.stop is not None for part in wanted)
    left = None if bounded and "documents" not in source.model_fields_set else source.documents
    for part in wanted:
        if left == 0:
            break
        seen_before = row_text.seen
        yield from dataset.pieces(_first_rows(part, left), row_text)
        if left is not None:
            left -= row_text.seen - seen_before


def _first_rows(part: SplitPart, most: int | None) -> SplitPart:
    """At most so many rows of a part; None for all of them."""
    if most is None:
        return part
    stop = part.begin + most
    return replace(part, stop=stop if part.stop is None else min(part.stop, stop))


class DataSet:
    """The rows of a data set.

    Attributes:
        source: names the data set
        path: of a file or folder of this machine, if there is one
        what: the data set, for messages
        local: whether it is on this machine
        library: reads it where no reader of this package does
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.path = Path(source.dataset)
        self.what = f"data set {source.dataset}"
        self.local = self.path.exists()
        self.library = Library(source)

    def parts(self) -> list[SplitPart]:
        """Return the parts of splits that the source asks for.

        Raises:
            ExciseError: a part needs the number of rows, which is not known.
        """
        split = self.source.split or "train"
        try:
            return split_parts(split, self.library.sizes)
        except KeyError as error:
            raise ExciseError(
                f"{self.what}: split {split} needs the number of rows of {error}, which is not told; "
                "count from the start instead, like train[:200]"
            ) from error

    def pieces(self, part: SplitPart, row_text: RowText) -> Iterator[Piece]:
        """Yield the text of the rows of a part."""
        files = self._files(part.name, row_text) if self.local and not self.library.saved else []
        if files:
            yield from _read(files, PartText(row_text, part))
            return
        several = "+" in self.source.split
        label = f"{self.source.dataset}/{part.name}" if several else self.source.dataset
        for number, row in enumerate(self.library.rows(part), part.begin):
            if piece := _piece(f"{label}#{number}", row, row_text):
                yield piece

    def _files(self, split: str, row_text: RowText) -> list[Path]:
        """The files of a split, if this package reads all of them: then their columns may differ."""
        if self.path.is_file():
            if split != "train":
                raise ExciseError(f"{self.what}: a file is one split, train; got {split!r}")
            return [] if table_suffix(self.path) in TABLES else [self.path]
        files_of_splits = self.library.builder().config.data_files
        if split not in files_of_splits:
            known = ", ".join(map(str, files_of_splits))
            raise ExciseError(f"{self.what}: no split {split!r}; it has {known}")
        self._note_unread(files_of_splits, row_text)
        files = [Path(str(file)) for file in files_of_splits[split]]
        readable = all(file.name.lower().removesuffix(".gz").endswith(ROWS) for file in files)
        return files if readable else []

    def _note_unread(self, files_of_splits: Mapping[str, Iterable[Any]], row_text: RowText) -> None:
        """Note files in no split: of a folder with files of several kinds `datasets` takes one kind."""
        taken: set[Path] = set()
        for files in files_of_splits.values():
            taken.update(Path(str(file)).resolve() for file in files)
        unread = [file for file in files_of(self.path, (*ROWS, *TABLES)) if file.resolve() not in taken]
        if unread:
            count = f"{len(unread)} files are in no split and are not read (the first is {unread[0]})"
            row_text.say(f"{row_text.what}: {count}")


class PartText:
    """The text of the rows of a part, whatever reader they come from; a `TextOf`.

    Attributes:
        row_text: the text of any row
        part: whose rows are taken
        number: rows so far
        columns: of a row that may be read
        refuse_prose: refuses plain text where a chat template is asked for
    """

    def __init__(self, row_text: RowText, part: SplitPart) -> None:
        self.row_text, self.part = row_text, part
        self.number = 0
        self.columns, self.refuse_prose = row_text.columns, row_text.refuse_prose

    @property
    def full(self) -> bool:
        """Whether all rows of the part have been read."""
        return self.part.stop is not None and self.number >= self.part.stop

    def __call__(self, document: str, row: Any) -> Piece | None:
        """Return the text of a row, None where it has none or is not in the part."""
        inside = self.number >= self.part.begin and not self.full
        self.number += 1
        return self.row_text(document, row) if inside else None


def _read(files: Iterable[Path], part_text: PartText) -> Iterator[Piece]:
    for path in files:
        file = reader(path, part_text, rows=True)
        for _, file_pieces in file.read(BLOCK, range(file.cells(BLOCK))):
            yield from file_pieces
            if part_text.full:
                return


def _piece(name: str, row: Any, row_text: RowText) -> Piece | None:
    with located(lambda: name):
        return row_text(name, row)
