"""Where text comes from, as a recipe writes it. No torch."""

import os
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from criteria.text.splits import check
from experts.errors import ExciseError
from experts.settings import OneOrMany, Settings

# true = the tokenizer's own, a name = one of several, false = none
Template = bool | Annotated[str, Field(min_length=1)]


class Source(Settings):
    """Where text comes from: exactly one of `text`, `jsonl`, `dataset`, `stdlib`."""

    text: OneOrMany[Path] = Field(
        default=(),
        description="files or folders: plain UTF-8 text, or rows where the name says so",
    )
    separator: str = Field(
        default="",
        description="regular expression that starts a new document in plain text; empty: a file is one",
    )
    jsonl: OneOrMany[Path] = Field(
        default=(),
        description="files or folders of rows: JSON lines, JSON arrays, single objects, parquet; .gz too",
    )
    field: OneOrMany[str] = Field(
        default=("text",),
        description="fields of a row, joined with a newline; with bars between names the first that a row has",
    )
    chat_template: Template | None = Field(
        default=None,
        description="true, false or the name of a template of the tokenizer, see below; none = as the block says",
    )
    dataset: str = Field(
        default="",
        description="a data set for datasets.load_dataset, streamed; or a local file or folder",
    )
    config: str = Field(default="", description="its configuration name")
    split: str = Field(
        default="",
        description="split of the data set, or a part (train[:200]); of stdlib train, calibration, test",
    )
    documents: int = Field(
        default=2000,
        gt=0,
        description="rows taken from a data set, the first ones; a part of a split is taken whole",
    )
    stdlib: Literal["code", "prose", ""] = Field(
        default="", description="text of this Python's standard library"
    )
    domain: str = Field(
        default="", description="label for criteria that compare domains; default: the kind of source"
    )

    @model_validator(mode="after")
    def _one_kind(self) -> "Source":
        if sum(map(bool, (self.text, self.jsonl, self.dataset, self.stdlib))) != 1:
            raise ValueError("give exactly one of text, jsonl, dataset, stdlib")
        self._check_keys()
        if self.dataset and self.split:
            check(self.split)
        if not all(name for field in self.field for name in field.split("|")):
            raise ValueError(f"field {' '.join(map(repr, self.field))} names nothing in one place")
        if self.stdlib and self.split not in ("train", "calibration", "test"):
            raise ValueError(f"stdlib needs split: train, calibration or test, got {self.split!r}")
        try:
            re.compile(self.separator)
        except re.error as error:
            raise ValueError(f"separator {self.separator!r} is not a regular expression: {error}") from None
        return self

    def _check_keys(self) -> None:
        """Keys of another kind would be passed over in silence."""
        own = {
            "split": self.dataset or self.stdlib,
            "documents": self.dataset,
            "config": self.dataset,
            "separator": self.text,
        }
        kinds = {
            "split": "dataset and stdlib",
            "documents": "dataset",
            "config": "dataset",
            "separator": "text",
        }
        if wrong := next(
            (
                key
                for key, there in own.items()
                if key in self.model_fields_set and getattr(self, key) and not there
            ),
            "",
        ):
            way = "; a file of rows can stand under dataset" if self.jsonl and wrong != "separator" else ""
            raise ValueError(f"{wrong} belongs to {kinds[wrong]}{way}")

    @property
    def label(self) -> str:
        dataset = Path(self.dataset).name if Path(self.dataset).is_absolute() else self.dataset
        return self.domain or self.stdlib or dataset or ("jsonl" if self.jsonl else "text")

    def anchored(self, folder: Path) -> "Source":
        """The same source with absolute paths, see `anchor`."""
        paths = {key: tuple(anchor(path, folder) for path in getattr(self, key)) for key in ("text", "jsonl")}
        if not self.dataset:
            return self.model_copy(update=paths)
        local = anchor(Path(self.dataset), folder)
        return self.model_copy(update={**paths, "dataset": str(local) if local.exists() else self.dataset})


def anchor(path: Path, folder: Path) -> Path:
    """Absolute: relative paths of a recipe start from its folder, or, where nothing is there, from the working directory.

    `~` and `$NAME` are replaced; a variable that is not set is an error.
    """
    path = Path(os.path.expanduser(os.path.expandvars(path)))  # noqa: PTH111 - that of Path raises where there is no home
    if unset := re.search(r"\$(\w+|\{\w+\})", str(path)):
        raise ExciseError(
            f"{path}: the environment variable {unset.group(1).strip('{}')} is not set; export it, or write the path out"
        )
    beside = (folder / path).absolute()
    return path.absolute() if not beside.exists() and path.exists() else beside
