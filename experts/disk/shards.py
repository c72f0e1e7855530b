"""Safetensors as named byte ranges: headers are read and checked, data is never touched. No torch.

Format: 8 bytes little-endian header length N, N bytes of JSON {name: {dtype, shape, data_offsets}}, then the data without holes.
Source: https://github.com/huggingface/safetensors#format
"""

import math
import os
import reprlib
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experts.disk.strict_json import (
    LARGEST_CONFIG,
    LARGEST_INDEX,
    broken_link,
    is_count,
    parse_object,
    read_object,
)
from experts.disk.weight_files import (
    INDEX_FILE,
    SINGLE_SHARD,
    entry_file,
    is_index,
    regular_files,
    shard_names,
    unread,
)
from experts.errors import ExciseError

BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
LONGEST_HEADER = 100_000_000  # bytes; the limit of the reference implementation
LONGEST_NAME = 4096  # characters of a tensor's name
MOST_AXES = 64  # of a tensor, as in numpy


@dataclass(frozen=True)
class FileState:
    """What changes when a file does: another file in its place (inode), another length, another time of writing."""

    inode: int
    size: int
    written_ns: int

    @classmethod
    def of(cls, found: os.stat_result) -> "FileState":
        return cls(found.st_ino, found.st_size, found.st_mtime_ns)


@dataclass(frozen=True)
class Stored:
    """One tensor on disk: its bytes are file[start:end]. state: of the file when its header was read; None on the hub."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    end: int
    state: FileState | None = field(default=None, compare=False)

    @property
    def size(self) -> int:
        return self.end - self.start

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Checkpoint:
    """A folder with config.json and safetensors shards. metadata: shard file name -> its `__metadata__`.

    entry: the file that reading begins with, all weights or the index of their shards; unread: files of weights
    beside it that no reader looks at.
    """

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Stored]
    metadata: Mapping[str, Mapping[str, str]]
    entry: str = SINGLE_SHARD
    unread: tuple[str, ...] = ()

    @property
    def sharded(self) -> bool:
        return is_index(self.entry)

    @property
    def notes(self) -> list[str]:
        """What a user should know of the folder before anything is made of it."""
        hidden = f"{self.folder}: {self.entry} is read, as transformers does; {', '.join(self.unread)} beside it is not"
        return [hidden] if self.unread else []

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.size for tensor in self.tensors.values())


def open_checkpoint(folder: Path) -> Checkpoint:
    """Reads config, index and every header. Raises ExciseError that names the file and what is wrong with it."""
    config = read_json(folder / "config.json")
    names = regular_files(folder)
    entry = _entry_file(folder, names, config)
    index = read_json(folder / entry, LARGEST_INDEX) if is_index(entry) else None
    shards = [entry] if index is None else shard_names(index, str(folder / entry))
    tensors: dict[str, Stored] = {}
    metadata = {}
    for shard in (folder / name for name in shards):
        found, metadata[shard.name] = read_header(shard)
        if repeated := found.keys() & tensors.keys():
            raise ExciseError(f"{shard}: tensor {min(repeated)} also stands in another shard")
        tensors.update(found)
    if index is not None:
        _check_index(folder / entry, index, tensors)
    return Checkpoint(folder, config, tensors, metadata, entry, tuple(unread(names, entry)))


def read_json(path: Path, largest: int = LARGEST_CONFIG) -> dict[str, Any]:
    """A JSON object from a file, or an ExciseError that names the file."""
    return read_object(path, "no such file; a checkpoint folder has config.json and *.safetensors", largest)


def read_header(path: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    """Tensors and metadata of one shard. Every offset is checked: inside the file, as long as dtype and shape say, no holes."""
    raw, state = _read_raw(path)
    entries = parse_object(raw, f"{path}: header", finite=True)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ExciseError(f"{path}: __metadata__ in the header is not an object of strings")
    data_start = 8 + len(raw)
    tensors = {name: _entry(path, name, entry, data_start, state) for name, entry in entries.items()}
    _check_coverage(path, list(tensors.values()), data_start, state.size)
    return tensors, metadata


def _read_raw(path: Path) -> tuple[bytes, FileState]:
    """The header's JSON, and the state of the file it was read from."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
            raise ExciseError(f"{path}: not a regular file")
        with path.open("rb") as file:
            state = FileState.of(os.fstat(file.fileno()))
            length = int.from_bytes(file.read(8), "little")
            if state.size < 8 or length > min(LONGEST_HEADER, state.size - 8):
                raise ExciseError(
                    f"{path}: truncated or damaged: the header claims {length} bytes, the file has {state.size}"
                )
            raw = file.read(length)
    except FileNotFoundError as error:
        raise ExciseError(
            f"{path}: {broken_link(path) or 'the shard is missing; download the checkpoint again'}"
        ) from error
    except OSError as error:
        raise ExciseError(f"{path}: cannot be read ({error.strerror or error})") from error
    if len(raw) < length:
        raise ExciseError(f"{path}: truncated while it was being read; start again")
    return raw, state


def _entry(path: Path, name: str, entry: Any, data_start: int, state: FileState) -> Stored:
    if len(name) > LONGEST_NAME:
        raise ExciseError(
            f"{path}: a tensor's name of {len(name)} characters ({name[:40]}…); the header is damaged"
        )
    try:
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (KeyError, TypeError) as error:
        raise ExciseError(f"{path}: tensor {name}: malformed header entry ({error!r})") from error
    lists = (
        isinstance(shape, list)
        and isinstance(offsets, list)
        and len(offsets) == 2
        and len(shape) <= MOST_AXES
    )
    if (
        not lists
        or not all(map(is_count, (*shape, *offsets)))
        or not isinstance(dtype, str)
        or dtype not in BITS
    ):
        raise ExciseError(
            f"{path}: tensor {name}: malformed or unknown dtype, shape or offsets in the header: {reprlib.repr(entry)}"
        )
    (start, end), expected = offsets, math.prod(shape) * BITS[dtype]
    if (end - start) * 8 != expected:
        raise ExciseError(
            f"{path}: tensor {name}: {dtype} {shape} needs {expected // 8} bytes, the header gives it {end - start}"
        )
    return Stored(name, dtype, tuple(shape), path, data_start + start, data_start + end, state)


def _check_coverage(path: Path, tensors: list[Stored], data_start: int, size: int) -> None:
    position = data_start
    for tensor in sorted(tensors, key=lambda tensor: (tensor.start, tensor.end)):
        if tensor.start != position:
            kind = "overlaps the one before it" if tensor.start < position else "leaves a hole before it"
            raise ExciseError(f"{path}: tensor {tensor.name} {kind}; the header is damaged")
        if tensor.end > size:
            raise ExciseError(
                f"{path}: truncated: tensor {tensor.name} ends at byte {tensor.end}, the file at {size}; download it again"
            )
        position = tensor.end
    if position != size:
        raise ExciseError(
            f"{path}: {size - position} bytes behind the last tensor belong to nothing; the file is damaged"
        )


def _entry_file(folder: Path, names: set[str], config: Mapping[str, Any]) -> str:
    """See `entry_file`; where there is none, a broken link may be why."""
    try:
        return entry_file(names, config, str(folder))
    except ExciseError:
        for name in (SINGLE_SHARD, INDEX_FILE):
            if name not in names and (wrong := broken_link(folder / name)):
                raise ExciseError(f"{folder / name}: {wrong}") from None
        raise


def _check_index(path: Path, index: dict[str, Any], tensors: Mapping[str, Stored]) -> None:
    for name, shard in index["weight_map"].items():
        if name not in tensors or tensors[name].file.name != shard:
            raise ExciseError(
                f"{path}: tensor {name} should stand in {shard} and does not; download the checkpoint again"
            )
