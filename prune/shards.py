"""Safetensors as named byte ranges: headers are read and checked, data is never touched. No torch.

Format: 8 bytes little-endian header length N, N bytes of JSON {name: {dtype, shape, data_offsets}}, then the data without holes.
Source: https://github.com/huggingface/safetensors#format
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from experts.errors import ExciseError

BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
LONGEST_HEADER = 100_000_000  # bytes; the limit of the reference implementation
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


@dataclass(frozen=True)
class Stored:
    """One tensor on disk: its bytes are file[start:end]."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.start

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Checkpoint:
    """A folder with config.json and safetensors shards. metadata: shard file name -> its `__metadata__`."""

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Stored]
    metadata: Mapping[str, Mapping[str, str]]
    sharded: bool

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.size for tensor in self.tensors.values())


def open_checkpoint(folder: Path) -> Checkpoint:
    """Reads config, index and every header. Raises ExciseError that names the file and what is wrong with it."""
    config = read_json(folder / "config.json")
    shards, index = _shards(folder)
    tensors: dict[str, Stored] = {}
    metadata = {}
    for shard in shards:
        found, metadata[shard.name] = read_header(shard)
        if repeated := found.keys() & tensors.keys():
            raise ExciseError(f"{shard}: tensor {min(repeated)} also stands in another shard")
        tensors.update(found)
    if index is not None:
        _check_index(folder / INDEX, index, tensors)
    return Checkpoint(folder, config, tensors, metadata, index is not None)


def fingerprint(checkpoint: Checkpoint) -> str:
    """Identity of a checkpoint: configuration, names, types, shapes, and bytes of every tensor.

    Tensors up to 64 KiB enter whole, larger ones with four blocks of 4 KiB: a model that was fine-tuned anywhere has another
    fingerprint, without reading all of it.
    """
    digest = xxhash.xxh3_128(json.dumps(checkpoint.config, sort_keys=True).encode())
    for shard in sorted({tensor.file for tensor in checkpoint.tensors.values()}):
        inside = sorted((tensor for tensor in checkpoint.tensors.values() if tensor.file == shard), key=lambda tensor: tensor.start)
        with shard.open("rb") as file:
            for tensor in inside:
                digest.update(f"{tensor.name} {tensor.dtype} {tensor.shape}".encode())
                whole = tensor.size <= 2**16
                starts = [tensor.start] if whole else [tensor.start + (tensor.size - 4096) * block // 3 for block in range(4)]
                for start in starts:
                    digest.update(os.pread(file.fileno(), tensor.size if whole else 4096, start))
    return digest.hexdigest()[:16]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, or an ExciseError that names the file."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ExciseError(f"{path}: no such file; a checkpoint folder has config.json and *.safetensors") from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ExciseError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(data, dict):
        raise ExciseError(f"{path}: expected a JSON object, found {type(data).__name__}")
    return data


def read_header(path: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    """Tensors and metadata of one shard. Every offset is checked: inside the file, as long as dtype and shape say, no holes."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(LONGEST_HEADER, size - 8):
                raise ExciseError(f"{path}: truncated or damaged: the header claims {length} bytes, the file has {size}")
            raw = file.read(length)
    except FileNotFoundError as error:
        raise ExciseError(f"{path}: the shard is missing; download the checkpoint again") from error
    data_start = 8 + length
    entries = _parse(path, raw)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ExciseError(f"{path}: __metadata__ in the header is not an object of strings")
    tensors = {name: _entry(path, name, entry, data_start) for name, entry in entries.items()}
    _check_coverage(path, list(tensors.values()), data_start, size)
    return tensors, metadata


def _parse(path: Path, raw: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            raise ExciseError(f"{path}: the header names {next(n for n in names if names.count(n) > 1)} twice")
        return found

    try:
        header = json.loads(raw, object_pairs_hook=unique)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ExciseError(f"{path}: the header is not valid JSON ({error}); the file is damaged") from error
    if not isinstance(header, dict):
        raise ExciseError(f"{path}: the header is not a JSON object; the file is damaged")
    return header


def _entry(path: Path, name: str, entry: Any, data_start: int) -> Stored:
    try:
        dtype, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        valid = all(type(number) is int and number >= 0 for number in (*shape, start, end))
    except (KeyError, TypeError, ValueError) as error:
        raise ExciseError(f"{path}: tensor {name}: malformed header entry ({error!r})") from error
    if not valid or not isinstance(dtype, str) or dtype not in BITS:
        raise ExciseError(f"{path}: tensor {name}: malformed or unknown dtype, shape or offsets in the header: {entry}")
    expected = math.prod(shape) * BITS[dtype]
    if (end - start) * 8 != expected:
        raise ExciseError(f"{path}: tensor {name}: {dtype} {shape} needs {expected // 8} bytes, the header gives it {end - start}")
    return Stored(name, dtype, tuple(shape), path, data_start + start, data_start + end)


def _check_coverage(path: Path, tensors: list[Stored], data_start: int, size: int) -> None:
    position = data_start
    for tensor in sorted(tensors, key=lambda tensor: (tensor.start, tensor.end)):
        if tensor.start != position:
            kind = "overlaps the one before it" if tensor.start < position else "leaves a hole before it"
            raise ExciseError(f"{path}: tensor {tensor.name} {kind}; the header is damaged")
        if tensor.end > size:
            raise ExciseError(f"{path}: truncated: tensor {tensor.name} ends at byte {tensor.end}, the file at {size}; download it again")
        position = tensor.end
    if position != size:
        raise ExciseError(f"{path}: {size - position} bytes behind the last tensor belong to nothing; the file is damaged")


def _shards(folder: Path) -> tuple[list[Path], dict[str, Any] | None]:
    if (folder / INDEX).exists():
        index = read_json(folder / INDEX)
        weights = index.get("weight_map")
        if not isinstance(weights, dict) or not weights or not all(isinstance(name, str) for name in weights.values()):
            raise ExciseError(f"{folder / INDEX}: no weight_map of tensor names to shard names")
        for name in set(weights.values()):
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise ExciseError(f"{folder / INDEX}: shard {name!r} is not a plain *.safetensors name in this folder")
        return [folder / name for name in sorted(set(weights.values()))], index
    if (folder / SINGLE).exists():
        return [folder / SINGLE], None
    if list(folder.glob("*.bin")) or list(folder.glob("*.pt")):
        raise ExciseError(f"{folder}: only pickled weights (*.bin), which can run code when opened; convert them to safetensors first")
    raise ExciseError(f"{folder}: neither {SINGLE} nor {INDEX}; not a safetensors checkpoint")


def _check_index(path: Path, index: dict[str, Any], tensors: Mapping[str, Stored]) -> None:
    for name, shard in index["weight_map"].items():
        if name not in tensors or tensors[name].file.name != shard:
            raise ExciseError(f"{path}: tensor {name} should stand in {shard} and does not; download the checkpoint again")
