"""Stages of a run folder, each with the key of its inputs; refuses folders of others, in use or damaged."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

from experts.errors import ExciseError
from experts.files import check_name, is_leftover, remove_leftovers, replacing
from experts.keys import key_of
from experts.locks import lock
from experts.notes import tell
from prune.machine import place_of
from prune.typed_json import problems

T = TypeVar("T")
RECORD, LOCK = "stages.json", ".lock"
SPILL = "spill"
CHECKPOINT = "checkpoint"  # the pruned model, in a run folder


def write_text(path: Path, text: str) -> None:
    """Atomic: a reader sees the old file or the new one. Bytes of a path that are no UTF-8 become escapes."""
    with replacing(path) as fresh:
        fresh.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, data: Any) -> None:
    """Atomic, indented."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")


class RunFolder:
    """A folder that belongs to one run.

    Args:
        path: the folder
        force: write into it whatever is there
        spill: folder for what waits on disk; None = in the run's own

    Attributes:
        record: stage -> key of the inputs it was made from
        spill: what waits on disk, and records of unfinished sweeps; of this run alone
    """

    def __init__(self, path: Path, force: bool = False, spill: Path | None = None) -> None:
        self.path = path
        self.spill = path / SPILL if spill is None else spill / f"excise-{key_of(str(path.absolute()))}"
        check_name(path.absolute())
        _check_place(path)
        if path.exists() and not (path / RECORD).is_file() and _is_used(path) and not force:
            raise ExciseError(
                f"{path}: exists and is not a run of Excise; "
                "choose another --output, or --force to write into it"
            )
        self.record: dict[str, str] = {}
        if (path / RECORD).is_file():
            try:
                record = json.loads((path / RECORD).read_text(encoding="utf-8"))
            except ValueError:
                record = None
            if not isinstance(record, dict) or not all(isinstance(key, str) for key in record.values()):
                raise ExciseError(
                    f"{path / RECORD}: damaged; delete it and pass --force to go on in this folder"
                )
            self.record = record

    @contextmanager
    def held(self) -> Iterator[None]:
        """Makes the folder and holds it for this process: two runs in one folder would mix their results."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / LOCK).open("w") as file:
            try:
                if lock(file.fileno()):
                    remove_leftovers(self.path)  # nobody else writes here
                else:
                    tell(f"{self.path}: this file system has no locks; start no second run in this folder")
            except BlockingIOError as error:
                raise ExciseError(
                    f"{self.path}: another run is at work in this folder; "
                    "wait for it or choose another --output"
                ) from error
            write_json(self.path / RECORD, self.record)
            yield
            shutil.rmtree(self.spill, ignore_errors=True)  # finished: nothing is taken up from there

    def valid(self, stage: str, key: str, *files: str) -> bool:
        return self.record.get(stage) == key and all((self.path / file).exists() for file in files)

    def kept(self, stage: str, key: str, content: type[T], result: str, *files: str) -> T | None:
        """The result of a stage that was made from these inputs; None where it has to be made again.

        Args:
            stage: its name
            key: of its inputs
            content: what is in the file of the result, a TypedDict
            result: that file
            files: others that belong to it

        Raises:
            ExciseError: a key of the result is missing, or has another kind of value.
        """
        if not self.valid(stage, key, result, *files):
            return None
        path = self.path / result
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None
        if not isinstance(data, dict):
            return None
        wrong = next(problems(data, content), None)
        if wrong:
            raise ExciseError(f"{path}: {wrong}; delete the file, and it is made again")
        return cast(T, data)

    def begin(self, stage: str) -> None:
        """Before its files are replaced: interrupted, they do not belong to what was there before."""
        if self.record.pop(stage, None) is not None:
            write_json(self.path / RECORD, self.record)

    def finish(self, stage: str, key: str) -> None:
        self.record[stage] = key
        write_json(self.path / RECORD, self.record)


def _check_place(path: Path) -> None:
    """Refuse a file, and a place below a file, where a folder is to be."""
    nearest = place_of(path)
    if not nearest.is_dir():
        raise ExciseError(f"{path}: {nearest} is a file, not a folder; choose another --output")


def _is_used(folder: Path) -> bool:
    """Whether it holds anything but what a run leaves that could not begin."""
    return any(file.name != LOCK and not is_leftover(file) for file in folder.iterdir())
