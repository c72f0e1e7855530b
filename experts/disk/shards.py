"""Safetensors as named byte ranges: headers are read and checked, data is never touched.

Format: 8 bytes little-endian header length N, N bytes of JSON {name: {dtype, shape, data_offsets}}, then the
data without holes. Source: https://github.com/huggingface/safetensors#format
"""

import math
import os
import reprlib
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
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
from experts.keys import key_of

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
    """What changes when a file does.

    Attributes:
        inode: another one means another file in its place
        size: bytes
        written_ns: time of the last writing
    """

    inode: int
    size: int
    written_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> "FileState":
        """The state that `os.stat` returns."""
        return cls(status.st_ino, status.st_size, status.st_mtime_ns)


@dataclass(frozen=True)
class Stored:
    """One tensor on disk: its bytes are file[start:end].

    Attributes:
        name: in the checkpoint
        dtype: as safetensors names it
        shape: of the tensor
        file: the shard
        start: first byte
        end: byte behind the last
        state: of the file when its header was read; None on the hub
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    end: int
    state: FileState | None = field(default=None, compare=False)

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.start

    @property
    def elements(self) -> int:
        """Numbers in it; of packed formats, as stored."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Checkpoint:
    """A folder with config.json and safetensors shards.

    Attributes:
        folder: where it is; the name of the model, where only headers are known
        config: of config.json
        tensors: by their names
        metadata: shard file name -> its `__metadata__`
        entry: the file that reading begins with: all weights, or the index of their shards
        unread: files of weights beside it that no reader looks at
    """

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Stored]
    metadata: Mapping[str, Mapping[str, str]]
    entry: str = SINGLE_SHARD
    unread: tuple[str, ...] = ()

    @property
    def sharded(self) -> bool:
        """Whether the weights are in several files with an index."""
        return is_index(self.entry)

    @property
    def notes(self) -> list[str]:
        """What a user should know of the folder before anything is made of it."""
        if not self.unread:
            return []
        names = ", ".join(self.unread)
        return [f"{self.folder}: {self.entry} is read, as transformers does; {names} beside it is not"]

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.size for tensor in self.tensors.values())

    @cached_property
    def form(self) -> str:
        """Identity of configuration, names, types and shapes, whatever the weights are."""
        tensors = {name: (tensor.dtype, tensor.shape) for name, tensor in self.tensors.items()}
        return key_of(self.config, tensors)


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read configuration, index and every header of a folder.

    Raises:
        ExciseError: names the file and what is wrong with it.
    """
    config = read_json(folder / "config.json")
    names = regular_files(folder)
    entry = _entry_file(folder, names, config)
    index = read_json(folder / entry, LARGEST_INDEX) if is_index(entry) else None
    shards = [entry] if index is None else shard_names(index, str(folder / entry))
    tensors, metadata = _read_headers([folder / shard for shard in shards])
    if index is not None:
        _check_index(folder / entry, index, tensors)
    return Checkpoint(folder, config, tensors, metadata, entry, tuple(unread(names, entry)))


def read_json(path: Path, largest: int = LARGEST_CONFIG) -> dict[str, Any]:
    """Read a JSON object of a checkpoint. Raises ExciseError that names the file."""
    return read_object(path, "no such file; a checkpoint folder has config.json and *.safetensors", largest)


def read_header(path: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    """Read the header of one shard.

    Every offset is checked: inside the file, as long as type and shape say, without holes.

    Returns:
        Tensors by name, and metadata.

    Raises:
        ExciseError: the file is missing or damaged.
    """
    raw, state = _read_raw(path)
    entries = parse_object(raw, f"{path}: header", finite=True)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ExciseError(f"{path}: __metadata__ in the header is not an object of strings")
    data_start = 8 + len(raw)
    tensors = {name: _stored(path, name, entry, data_start, state) for name, entry in entries.items()}
    _check_coverage(path, list(tensors.values()), data_start, state.size)
    return tensors, metadata


def _read_headers(shards: list[Path]) -> tuple[dict[str, Stored], dict[str, dict[str, str]]]:
    """Tensors of all shards by name, and metadata by file name."""
    tensors: dict[str, Stored] = {}
    metadata = {}
    for shard in shards:
        of_shard, metadata[shard.name] = read_header(shard)
        if repeated := of_shard.keys() & tensors.keys():
            raise ExciseError(f"{shard}: tensor {min(repeated)} is in another shard too")
        tensors.update(of_shard)
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
                    f"{path}: truncated or damaged: the header claims {length} bytes, "
                    f"the file has {state.size}"
                )
            raw = file.read(length)
    except FileNotFoundError as error:
        reason = broken_link(path) or "the shard is missing; download the checkpoint again"
        raise ExciseError(f"{path}: {reason}") from error
    except OSError as error:
        raise ExciseError(f"{path}: cannot be read ({error.strerror or error})") from error
    if len(raw) < length:
        raise ExciseError(f"{path}: truncated while it was being read; start again")
    return raw, state


def _stored(path: Path, name: str, entry: Any, data_start: int, state: FileState) -> Stored:
    """A tensor from its entry in the header of `path`."""
    if len(name) > LONGEST_NAME:
        raise ExciseError(
            f"{path}: a tensor's name of {len(name)} characters ({name[:40]}…); the header is damaged"
        )
    try:
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (KeyError, TypeError) as error:
        raise ExciseError(f"{path}: tensor {name}: malformed header entry ({error!r})") from error
    if not _is_well_formed(dtype, shape, offsets):
        raise ExciseError(
            f"{path}: tensor {name}: malformed or unknown dtype, shape or offsets in the header: "
            f"{reprlib.repr(entry)}"
        )
    start, end = offsets
    bits = math.prod(shape) * BITS[dtype]
    if (end - start) * 8 != bits:
        raise ExciseError(
            f"{path}: tensor {name}: {dtype} {shape} needs {bits // 8} bytes, "
            f"the header gives it {end - start}"
        )
    return Stored(name, dtype, tuple(shape), path, data_start + start, data_start + end, state)


def _is_well_formed(dtype: Any, shape: Any, offsets: Any) -> bool:
    """Whether the values of a header's entry are what the format asks for."""
    if not isinstance(shape, list) or not isinstance(offsets, list):
        return False
    if len(shape) > MOST_AXES or len(offsets) != 2:
        return False
    return all(map(is_count, (*shape, *offsets))) and isinstance(dtype, str) and dtype in BITS


def _check_coverage(path: Path, tensors: list[Stored], data_start: int, size: int) -> None:
    """The tensors follow each other without holes up to the end of the file, `size` bytes."""
    end = data_start
    for tensor in sorted(tensors, key=lambda tensor: (tensor.start, tensor.end)):
        if tensor.start != end:
            fault = "overlaps the one before it" if tensor.start < end else "leaves a hole before it"
            raise ExciseError(f"{path}: tensor {tensor.name} {fault}; the header is damaged")
        if tensor.end > size:
            raise ExciseError(
                f"{path}: truncated: tensor {tensor.name} ends at byte {tensor.end}, the file at {size}; "
                "download it again"
            )
        end = tensor.end
    if end != size:
        raise ExciseError(
            f"{path}: {size - end} bytes behind the last tensor belong to nothing; the file is damaged"
        )


def _entry_file(folder: Path, names: set[str], config: Mapping[str, Any]) -> str:
    """See `entry_file`; where there is none, a broken link may be why."""
    try:
        return entry_file(names, config, str(folder))
    except ExciseError:
        for name in (SINGLE_SHARD, INDEX_FILE):
            if name not in names and (reason := broken_link(folder / name)):
                raise ExciseError(f"{folder / name}: {reason}") from None
        raise


def _check_index(path: Path, index: dict[str, Any], tensors: Mapping[str, Stored]) -> None:
    """Every tensor that the index names is in the shard that it says."""
    for name, shard in index["weight_map"].items():
        if name not in tensors or tensors[name].file.name != shard:
            raise ExciseError(
                f"{path}: tensor {name} should be in {shard} and is not; download the checkpoint again"
            )
