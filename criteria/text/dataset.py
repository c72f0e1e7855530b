"""Data sets: of the hub, streamed, and files and folders of this machine."""

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from criteria.text.readers.by_name import ROWS, files_of, reader
from criteria.text.readers.pieces import BLOCK, Piece, located
from criteria.text.rows import RowText
from criteria.text.sources import Source
from criteria.text.splits import Part, parts
from experts.errors import ExciseError, let_through, one_line

SAVED = ("state.json", "dataset_dict.json")  # what save_to_disk leaves
TABLES: dict[str, tuple[str, dict[str, Any]]] = {  # suffix -> the library's reader
    ".csv": ("csv", {}),
    ".tsv": ("csv", {"sep": "\t"}),
    ".arrow": ("arrow", {}),
    ".txt": ("text", {}),
}


def pieces(source: Source, text_of: RowText) -> Iterator[Piece]:
    """The text of a data set's rows: the first `documents`, or all that a part like train[:200] names."""
    for library in ("datasets", "huggingface_hub"):
        logging.getLogger(library).setLevel(logging.ERROR)  # a folder without a card is no mistake
    rows = Rows(source)
    wanted = rows.parts()
    bounded = all(part.stop is not None for part in wanted)
    left = None if bounded and "documents" not in source.model_fields_set else source.documents
    for part in wanted:
        if left == 0:
            break
        before, stops = text_of.seen, [part.stop, None if left is None else part.begin + left]
        stop = min((stop for stop in stops if stop is not None), default=None)
        yield from rows.of(replace(part, stop=stop), text_of)
        left = None if left is None else left - (text_of.seen - before)


class Rows:
    """Where the rows of a data set are."""

    def __init__(self, source: Source) -> None:
        self.source, self.path = source, Path(source.dataset)
        self.what = f"data set {source.dataset}"
        self.local = self.path.exists()
        self.saved = any((self.path / name).is_file() for name in SAVED)

    def parts(self) -> list[Part]:
        """The parts of splits that are asked for."""
        split = self.source.split or "train"
        try:
            return parts(split, self._sizes)
        except KeyError as error:
            raise ExciseError(
                f"{self.what}: split {split} needs the number of rows of {error}, which is not told; "
                "count from the start instead, like train[:200]"
            ) from error

    def of(self, part: Part, text_of: RowText) -> Iterator[Piece]:
        """The text of the rows of a part."""
        if self.local and not self.saved and (files := self._files(part.name, text_of)):
            yield from _read(files, Taken(text_of, part))
            return
        several = "+" in self.source.split
        label = f"{self.source.dataset}/{part.name}" if several else self.source.dataset
        for number, row in enumerate(self._by_library(part), part.begin):
            if piece := _piece(f"{label}#{number}", row, text_of):
                yield piece

    def _sizes(self) -> Mapping[str, int]:
        """Rows of every split, where the data set tells them."""
        if self.saved:
            return {name: len(rows) for name, rows in self._from_disk().items()}
        if self.path.is_file():
            return {}
        splits = self._builder().info.splits or {}
        return {str(name): split.num_examples for name, split in splits.items() if split.num_examples}

    def _files(self, split: str, text_of: RowText) -> list[Path]:
        """The files of a split if all are of a kind that is read here: then their columns may differ."""
        if self.path.is_file():
            if split != "train":
                raise ExciseError(f"{self.what}: a file is one split, train; got {split!r}")
            return [] if _table_of(self.path) in TABLES else [self.path]
        found = self._builder().config.data_files
        if split not in found:
            raise ExciseError(f"{self.what}: no split {split!r}; it has {', '.join(map(str, found))}")
        self._say_what_is_in_none(found, text_of)
        files = [Path(str(file)) for file in found[split]]
        return files if all(file.name.lower().removesuffix(".gz").endswith(ROWS) for file in files) else []

    def _say_what_is_in_none(self, found: Mapping[str, Iterable[Any]], text_of: RowText) -> None:
        """Of a folder with files of several kinds `datasets` takes one kind."""
        taken = {Path(str(file)).resolve() for files in found.values() for file in files}
        left = [file for file in files_of(self.path, (*ROWS, *TABLES)) if file.resolve() not in taken]
        if left:
            unread = f"{len(left)} files are in no split and are not read (the first is {left[0]})"
            text_of.say(f"{text_of.what}: {unread}")

    def _builder(self) -> Any:
        with self._asked():
            import datasets

            return datasets.load_dataset_builder(self.source.dataset, self.source.config or None)

    def _by_library(self, part: Part) -> Iterator[Any]:
        with self._asked():
            rows = iter(self._from_disk_part(part) if self.saved else self._streamed(part))
        while True:
            with self._asked():
                row = next(rows, None)
            if row is None:
                return
            yield row

    def _streamed(self, part: Part) -> Any:
        import datasets

        if self.local and self.path.is_file():
            module, options = TABLES[_table_of(self.path)]
            options = {"data_files": str(self.path), "split": "train", **options}
            rows = datasets.load_dataset(module, streaming=True, **options)
        else:
            names = (self.source.dataset, self.source.config or None)
            rows = datasets.load_dataset(*names, split=part.name, streaming=True)
        rows = rows.skip(part.begin) if part.begin else rows
        return rows if part.stop is None else rows.take(max(0, part.stop - part.begin))

    def _from_disk_part(self, part: Part) -> Any:
        rows = self._from_disk()[part.name]
        stop = len(rows) if part.stop is None else min(part.stop, len(rows))
        return rows.select(range(min(part.begin, stop), stop))

    def _from_disk(self) -> Mapping[str, Any]:
        """The splits of what `save_to_disk` wrote."""
        with self._asked():
            import datasets

            saved = datasets.load_from_disk(str(self.path))
        several = isinstance(saved, datasets.DatasetDict)
        splits = saved if several else {str(saved.split or "train"): saved, "train": saved}
        for name in re.findall(r"(?:^|\+)\s*([^\[+\s]+)", self.source.split or "train"):
            if name not in splits:
                raise ExciseError(f"{self.what}: no split {name!r}; it has {', '.join(map(str, splits))}")
        return splits

    @contextmanager
    def _asked(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # the library hands on whatever networks, archives and tables raise
            let_through(error)
            raise ExciseError(f"{self.what}: cannot be read ({one_line(error)})") from error


def _table_of(path: Path) -> str:
    """How a file ends, .gz apart: the library's readers unpack it."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


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


def _piece(name: str, row: Any, text_of: RowText) -> Piece | None:
    with located(lambda: name):
        return text_of(name, row)
