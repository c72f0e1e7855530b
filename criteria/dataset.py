"""Data sets: of the hub, streamed, and files and folders of this machine."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from criteria.formats import ROWS, files_of, reader
from criteria.pieces import BLOCK, Piece, located
from criteria.rows import RowText
from criteria.sources import Source
from criteria.splits import Part, parts
from experts.errors import ExciseError, let_through, one_line

SAVED = ("state.json", "dataset_dict.json")  # what save_to_disk leaves
TABLES: dict[str, tuple[str, dict[str, Any]]] = {
    ".csv": ("csv", {}),
    ".tsv": ("csv", {"sep": "\t"}),
    ".arrow": ("arrow", {}),
    ".txt": ("text", {}),
}


def pieces(source: Source, text_of: RowText) -> Iterator[Piece]:
    """The text of a data set's rows: of the first `documents` rows, or of all that a part like train[:200] names."""
    for library in ("datasets", "huggingface_hub"):
        logging.getLogger(library).setLevel(logging.ERROR)  # a folder without a card is no mistake
    rows = Rows(source)
    wanted = rows.parts()
    bounded = all(part.stop is not None for part in wanted)
    left = None if bounded and "documents" not in source.model_fields_set else source.documents
    for part in wanted:
        before = text_of.seen
        most = part.stop if left is None else min(part.begin + left, part.begin + left if part.stop is None else part.stop)
        yield from rows.of(replace(part, stop=most), text_of)
        left = None if left is None else left - (text_of.seen - before)


class Rows:
    """Where the rows of a data set are."""

    def __init__(self, source: Source) -> None:
        self.source, self.path = source, Path(source.dataset)
        self.local = self.path.exists()
        self.saved = any((self.path / name).is_file() for name in SAVED)

    def parts(self) -> list[Part]:
        """The parts of splits that are asked for."""
        split = self.source.split or "train"
        try:
            return parts(split, self._sizes)
        except KeyError as error:
            raise ExciseError(
                f"data set {self.source.dataset}: split {split} needs the number of rows of {error}, which the data set does not tell; "
                "count from the start instead, like train[:200]"
            ) from error

    def of(self, part: Part, text_of: RowText) -> Iterator[Piece]:
        """The text of the rows of a part."""
        if self.local and not self.saved and (files := self._files(part.name, text_of)):
            yield from _read(files, Taken(text_of, part))
            return
        label = f"{self.source.dataset}/{part.name}" if "+" in self.source.split else self.source.dataset
        for number, row in enumerate(self._by_library(part), part.begin):
            if piece := _piece(f"{label}#{number}", row, text_of):
                yield piece

    def _sizes(self) -> Mapping[str, int]:
        """Rows of every split, where the data set tells them."""
        with self._asked():
            import datasets

            if self.saved:
                return {name: len(rows) for name, rows in self._from_disk().items()}
            if self.path.is_file():
                return {}
            splits = datasets.load_dataset_builder(self.source.dataset, self.source.config or None).info.splits or {}
            return {str(name): split.num_examples for name, split in splits.items() if split.num_examples}

    def _files(self, split: str, text_of: RowText) -> list[Path]:
        """The files of a split, if all are of a kind that is read here: then the columns of one may differ from those of another."""
        if self.path.is_file():
            if split != "train":
                raise ExciseError(f"data set {self.path}: a file is one split, train; got {split!r}")
            return [] if self.path.suffix.lower() in TABLES else [self.path]
        with self._asked():
            import datasets

            found = datasets.load_dataset_builder(str(self.path), self.source.config or None).config.data_files
        if split not in found:
            raise ExciseError(f"data set {self.path}: no split {split!r}; it has {', '.join(map(str, found))}")
        self._say_what_is_in_none(found, text_of)
        files = [Path(str(file)) for file in found[split]]
        return files if all(file.name.lower().removesuffix(".gz").endswith(ROWS) for file in files) else []

    def _say_what_is_in_none(self, found: Mapping[str, Iterable[Any]], text_of: RowText) -> None:
        """Of a folder with files of several kinds `datasets` takes one kind."""
        taken = {Path(str(file)).resolve() for files in found.values() for file in files}
        left = [file for file in files_of(self.path, (*ROWS, *TABLES)) if file.resolve() not in taken]
        if left:
            text_of.say(f"data ({self.source.label}): {len(left)} files are in no split and are not read (the first is {left[0]})")

    def _by_library(self, part: Part) -> Iterator[Any]:
        with self._asked():
            rows = iter(self._opened(part))
        while True:
            with self._asked():
                row = next(rows, None)
            if row is None:
                return
            yield row

    def _opened(self, part: Part) -> Iterable[Any]:
        import datasets

        rows: Any
        if self.saved:
            rows = self._from_disk()[part.name]
            stop = len(rows) if part.stop is None else min(part.stop, len(rows))
            chosen: Iterable[Any] = rows.select(range(min(part.begin, stop), stop))
            return chosen
        if self.local and self.path.is_file():
            module, options = TABLES[self.path.suffix.lower()]
            rows = datasets.load_dataset(module, data_files=str(self.path), split="train", streaming=True, **options)
        else:
            rows = datasets.load_dataset(self.source.dataset, self.source.config or None, split=part.name, streaming=True)
        rows = rows.skip(part.begin) if part.begin else rows
        taken: Iterable[Any] = rows if part.stop is None else rows.take(max(0, part.stop - part.begin))
        return taken

    def _from_disk(self) -> Mapping[str, Any]:
        import datasets

        saved = datasets.load_from_disk(str(self.path))
        splits = saved if isinstance(saved, datasets.DatasetDict) else {str(saved.split or "train"): saved, "train": saved}
        name = (self.source.split or "train").split("[")[0]
        if "+" not in name and name not in splits:
            raise ExciseError(f"data set {self.path}: no split {name!r}; it has {', '.join(map(str, splits))}")
        return splits

    @contextmanager
    def _asked(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # the library hands on whatever networks, archives and tables raise
            let_through(error)
            raise ExciseError(f"data set {self.source.dataset}: cannot be read ({one_line(error)})") from error


class Taken:
    """The text of the rows of a part alone, whatever reader they come from."""

    def __init__(self, text_of: RowText, part: Part) -> None:
        self.text_of, self.part, self.number = text_of, part, 0
        self.columns, self.refuse_prose = text_of.columns, text_of.refuse_prose

    @property
    def full(self) -> bool:
        return self.part.stop is not None and self.number >= self.part.stop

    def __call__(self, document: str, row: Any) -> Piece | None:
        inside = self.number >= self.part.begin and not self.full
        self.number += 1
        return self.text_of(document, row) if inside else None


def _read(files: Iterable[Path], taken: Taken) -> Iterator[Piece]:
    for path in files:
        file = reader(path, taken, rows=True)
        for _, found in file.read(BLOCK, range(file.cells(BLOCK))):
            yield from found
            if taken.full:
                return
        if taken.full:
            return


def _piece(name: str, row: Any, text_of: RowText) -> Piece | None:
    with located(lambda: name):
        return text_of(name, row)
