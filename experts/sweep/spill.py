"""Files of a sweep: written once, never changed, mapped into memory when they are read."""

import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
import xxhash

from experts.errors import ExciseError, one_line
from experts.units import human

SUFFIX = ".states"
CHUNK = 2**24  # bytes read at once to check a file


@dataclass(frozen=True)
class Written:
    """A file as it was written.

    Attributes:
        size: bytes
        digest: xxh3 of its bytes
    """

    size: int
    digest: str


class SpillFolder:
    """A folder of files that one sweep writes.

    Files that a record names outlive their removal until the next record takes its place.

    Attributes:
        path: the folder; it is made when the first file is written
        files: those that are there, by name
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files: dict[str, Written] = {}
        self._pinned: frozenset[str] = frozenset()
        self._unwanted: set[str] = set()
        self._serial = 0

    def write(self, content: Any) -> str:
        """Write tensors in lists and dictionaries to a new file. They keep dtype and strides.

        Returns:
            The name of the file.

        Raises:
            ExciseError: the disk is full, or the folder cannot be written.
        """
        self._serial += 1
        name = f"{self._serial:08}{SUFFIX}"
        path = self.path / name
        out: _Counted | None = None
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                out = _Counted(file)
                torch.save(content, out)  # type: ignore[arg-type]  # it asks for write and flush alone
        except (OSError, RuntimeError) as error:
            path.unlink(missing_ok=True)
            reason = out.error if out is not None and out.error else error
            if not isinstance(reason, OSError):
                raise
            raise self._full(reason, bytes_of(content)) from error
        self.files[name] = Written(out.size, out.digest.hexdigest())
        return name

    def read(self, name: str) -> Any:
        """The content of a file. Its tensors are mapped: what is not touched is not read."""
        return torch.load(self.path / name, map_location="cpu", mmap=True, weights_only=True)

    def remove(self, name: str) -> None:
        """Remove a file; one that a record names when that record has a successor."""
        if name in self._pinned:
            self._unwanted.add(name)
            return
        self.files.pop(name, None)
        (self.path / name).unlink(missing_ok=True)

    def pin(self, names: Collection[str]) -> None:
        """Keep these files, and no longer those of the record before."""
        self._pinned, unwanted, self._unwanted = frozenset(names), self._unwanted, set()
        for name in unwanted:
            self.remove(name)

    def adopt(self, files: dict[str, Written]) -> None:
        """Take up the files that a record names, if they are whole. What else is there is removed.

        Raises:
            ValueError: a file is missing or damaged.
        """
        for name, written in files.items():
            if _checked(self.path / name) != written:
                raise ValueError(f"{name} is missing or damaged")
        self.files = dict(files)
        self._serial = max((int(Path(name).stem) for name in files), default=0)
        self.remove_strangers()

    def remove_strangers(self) -> None:
        """Remove files that a killed process left beside those that are known."""
        for path in self.path.glob(f"*{SUFFIX}"):
            if path.name not in self.files:
                path.unlink(missing_ok=True)

    def remove_all(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.files.clear()

    def remove_all_but_pinned(self) -> None:
        """Remove what the last record does not name."""
        for name in set(self.files) - self._pinned:
            self.remove(name)

    def free(self) -> int:
        """Bytes that are free on its disk."""
        there = next(folder for folder in (self.path, *self.path.parents) if folder.exists())
        return shutil.disk_usage(there).free

    def _full(self, error: OSError, size: int) -> ExciseError:
        return ExciseError(
            f"{self.path}: waiting states cannot be written ({error.strerror or one_line(error)}): "
            f"they need {human(size)} more, {human(self.free())} are free; "
            "free some, or set memory.spill to another folder"
        )


class _Counted:
    """A file that knows what was written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.size, self.digest = file, 0, xxhash.xxh3_64()
        self.error: OSError | None = None  # torch reports it as an error of its own

    def write(self, content: bytes) -> int:
        try:
            count = self._file.write(content)
        except OSError as error:
            self.error = error
            raise
        self.size += count
        self.digest.update(content)
        return count

    def flush(self) -> None:
        self._file.flush()


def bytes_of(content: Any) -> int:
    """The bytes of all tensors in lists and dictionaries."""
    if isinstance(content, torch.Tensor):
        return content.nbytes
    if isinstance(content, dict):
        return sum(map(bytes_of, content.values()))
    return sum(map(bytes_of, content)) if isinstance(content, list | tuple) else 0


def _checked(path: Path) -> Written | None:
    """A file as it is now; None where there is none."""
    size, digest = 0, xxhash.xxh3_64()
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                size += len(chunk)
                digest.update(chunk)
    except OSError:
        return None
    return Written(size, digest.hexdigest())
