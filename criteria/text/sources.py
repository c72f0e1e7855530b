"""Where text comes from, as a recipe writes it."""

import os
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from criteria.text.sampled.settings import DOMAIN, Sampled
from criteria.text.splits import check_split
from experts.errors import ExciseError
from experts.settings import OneOrMany, Settings

# true = the tokenizer's own, a name = one of several, false = none
TemplateChoice = bool | Annotated[str, Field(min_length=1)]


class Source(Settings):
    """Where text comes from: exactly one of `text`, `jsonl`, `dataset`, `stdlib`, `sampled`."""

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
        description=(
            "fields of a row, joined with a newline; with bars between names the first that a row has"
        ),
    )
    chat_template: TemplateChoice | None = Field(
        default=None,
        description=(
            "true, false or the name of a template of the tokenizer, see below; none = as the block says"
        ),
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
    sampled: Sampled | None = Field(default=None, description="text that the unpruned model writes itself")
    weight: float = Field(
        default=1.0, gt=0, description="of several sources: each gives windows in proportion to its weight"
    )
    domain: str = Field(
        default="", description="label for criteria and verdicts by domain; default: the kind of source"
    )

    @model_validator(mode="after")
    def _check(self) -> "Source":
        kinds = [self.text, self.jsonl, self.dataset, self.stdlib, self.sampled]
        if sum(map(bool, kinds)) != 1:
            raise ValueError("give exactly one of text, jsonl, dataset, stdlib, sampled")
        self._check_keys()
        self._check_split_of_dataset()
        self._check_field()
        self._check_split_of_stdlib()
        self._check_separator()
        return self

    def _check_keys(self) -> None:
        """Refuse keys of another kind of source, which would have no effect."""
        kinds_of_key = {
            "split": "dataset and stdlib",
            "documents": "dataset",
            "config": "dataset",
            "separator": "text",
        }
        for key, kinds in kinds_of_key.items():
            given = key in self.model_fields_set and getattr(self, key)
            if given and not self._takes(key):
                may_move = self.jsonl and key != "separator"
                way = "; a file of rows can be given as dataset" if may_move else ""
                raise ValueError(f"{key} belongs to {kinds}{way}")

    def _takes(self, key: str) -> bool:
        """Whether split, documents, config or separator has an effect on this kind of source."""
        if key == "split":
            return bool(self.dataset or self.stdlib)
        return bool(self.text if key == "separator" else self.dataset)

    def _check_split_of_dataset(self) -> None:
        if self.dataset and self.split:
            check_split(self.split)

    def _check_field(self) -> None:
        names = [name for field in self.field for name in field.split("|")]
        if not all(names):
            raise ValueError(f"field {' '.join(map(repr, self.field))} names nothing in one place")

    def _check_split_of_stdlib(self) -> None:
        if self.stdlib and self.split not in ("train", "calibration", "test"):
            raise ValueError(f"stdlib needs split: train, calibration or test, got {self.split!r}")

    def _check_separator(self) -> None:
        try:
            re.compile(self.separator)
        except re.error as error:
            raise ValueError(f"separator {self.separator!r} is not a regular expression: {error}") from None

    @property
    def label(self) -> str:
        """The domain of the text: as the recipe names it, else the kind of source."""
        dataset = Path(self.dataset).name if Path(self.dataset).is_absolute() else self.dataset
        kind = "jsonl" if self.jsonl else "text"
        return self.domain or self.stdlib or dataset or (DOMAIN if self.sampled else kind)

    @property
    def drawn(self) -> bool:
        """Whether the model has to write this text first."""
        return self.sampled is not None and self.sampled.file is None

    @property
    def fixed_windows(self) -> int | None:
        """Windows that this source gives, however many the block asks for; None = its share."""
        return self.sampled.windows if self.sampled else None

    def anchored(self, folder: Path) -> "Source":
        """Return the same source with absolute paths, see `anchor`."""
        if self.sampled and self.sampled.file:
            file = {"file": anchor(self.sampled.file, folder)}
            return self.model_copy(update={"sampled": self.sampled.model_copy(update=file)})
        paths = {key: tuple(anchor(path, folder) for path in getattr(self, key)) for key in ("text", "jsonl")}
        if not self.dataset:
            return self.model_copy(update=paths)
        local = anchor(Path(self.dataset), folder)
        return self.model_copy(update={**paths, "dataset": str(local) if local.exists() else self.dataset})


def anchor(path: Path, folder: Path) -> Path:
    """Return the absolute path of a path in a recipe, with `~` and `$NAME` replaced.

    Relative paths start from the folder of the recipe; where nothing is there, from the working directory.

    Args:
        path: as the recipe writes it
        folder: of the recipe

    Raises:
        ExciseError: an environment variable is not set.
    """
    expanded = os.path.expandvars(path)
    path = Path(os.path.expanduser(expanded))  # noqa: PTH111 - that of Path raises where there is no home
    if unset := re.search(r"\$(\w+|\{\w+\})", str(path)):
        name = unset.group(1).strip("{}")
        raise ExciseError(
            f"{path}: the environment variable {name} is not set; export it, or write the path out"
        )
    beside = (folder / path).absolute()
    from_here = path.absolute()
    return from_here if not beside.exists() and path.exists() else beside
