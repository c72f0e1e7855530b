"""Rows of a data set as the library `datasets` reads them."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from criteria.text.sources import Source
from criteria.text.splits import SplitPart
from experts.errors import ExciseError, let_through, one_line

SAVED_MARKS = ("state.json", "dataset_dict.json")  # files that save_to_disk writes
SPLIT_NAME = re.compile(r"(?:^|\+)\s*([^\[+\s]+)")

# Suffix of a file -> the module of the library that reads it, and its options.
TABLES: dict[str, tuple[str, dict[str, Any]]] = {
    ".csv": ("csv", {}),
    ".tsv": ("csv", {"sep": "\t"}),
    ".arrow": ("arrow", {}),
    ".txt": ("text", {}),
}


class Library:
    """What `datasets` knows of a data set. It is imported on the first question, because that takes seconds.

    Attributes:
        source: names the data set
        path: of a file or folder of this machine, if there is one
        what: the data set, for messages
        saved: whether `save_to_disk` wrote it
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.path = Path(source.dataset)
        self.what = f"data set {source.dataset}"
        self.saved = any((self.path / name).is_file() for name in SAVED_MARKS)

    def sizes(self) -> Mapping[str, int]:
        """Return the number of rows of every split, as far as the data set says it."""
        if self.saved:
            return {name: len(rows) for name, rows in self._splits_on_disk().items()}
        if self.path.is_file():
            return {}
        splits = self.builder().info.splits or {}
        return {str(name): split.num_examples for name, split in splits.items() if split.num_examples}

    def builder(self) -> Any:
        """Return the library's builder of the data set, which knows its files and splits."""
        with self._errors_named():
            import datasets

            return datasets.load_dataset_builder(self.source.dataset, self.source.config or None)

    def rows(self, part: SplitPart) -> Iterator[Any]:
        """Yield the rows of a part.

        Raises:
            ExciseError: the library cannot read them.
        """
        with self._errors_named():
            rows = iter(self._rows_on_disk(part) if self.saved else self._streamed_rows(part))
        while True:
            with self._errors_named():
                row = next(rows, None)
            if row is None:
                return
            yield row

    def _streamed_rows(self, part: SplitPart) -> Any:
        import datasets

        if self.path.is_file():
            module, options = TABLES[table_suffix(self.path)]
            options = {"data_files": str(self.path), "split": "train", **options}
            rows = datasets.load_dataset(module, streaming=True, **options)
        else:
            names = (self.source.dataset, self.source.config or None)
            rows = datasets.load_dataset(*names, split=part.name, streaming=True)
        if part.begin:
            rows = rows.skip(part.begin)
        return rows if part.stop is None else rows.take(max(0, part.stop - part.begin))

    def _rows_on_disk(self, part: SplitPart) -> Any:
        rows = self._splits_on_disk()[part.name]
        stop = len(rows) if part.stop is None else min(part.stop, len(rows))
        return rows.select(range(min(part.begin, stop), stop))

    def _splits_on_disk(self) -> Mapping[str, Any]:
        """The splits of what `save_to_disk` wrote."""
        with self._errors_named():
            import datasets

            saved = datasets.load_from_disk(str(self.path))
        several = isinstance(saved, datasets.DatasetDict)
        splits = saved if several else {str(saved.split or "train"): saved, "train": saved}
        for name in SPLIT_NAME.findall(self.source.split or "train"):
            if name not in splits:
                raise ExciseError(f"{self.what}: no split {name!r}; it has {', '.join(map(str, splits))}")
        return splits

    @contextmanager
    def _errors_named(self) -> Iterator[None]:
        """Name the data set in errors: the library passes on whatever networks, archives and tables raise."""
        try:
            yield
        except Exception as error:
            let_through(error)
            raise ExciseError(f"{self.what}: cannot be read ({one_line(error)})") from error


def table_suffix(path: Path) -> str:
    """Return how a file ends, .gz apart: the library unpacks it."""
    return Path(path.name.lower().removesuffix(".gz")).suffix
