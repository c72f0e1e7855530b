"""Shard files of a new checkpoint: a safetensors header, and behind it the pieces in its order."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experts.disk.shards import read_header
from experts.errors import ExciseError
from prune.checkpoint.ranges import Copy, copies, copy_all
from prune.checkpoint.slices import NewTensor, Shards


def header(pieces: list[NewTensor], metadata: Mapping[str, str]) -> bytes:
    """The safetensors header of a shard, padded with spaces to 8 bytes as the reference writer does.

    Args:
        metadata: entries of the source's header, kept as `__metadata__`.
    """
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    start = 0
    for piece in pieces:
        end = start + piece.size
        entries[piece.name] = {
            "dtype": piece.dtype,
            "shape": list(piece.shape),
            "data_offsets": [start, end],
        }
        start = end
    raw = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw


def write_shards(shards: Shards, metadata: Mapping[str, Mapping[str, str]], folder: Path) -> None:
    """Write every shard into a folder; each byte is synced, read back and compared.

    Args:
        metadata: shard file name -> entries of the source's header.

    Raises:
        ExciseError: bytes on disk differ from those that were written.
    """
    jobs: list[Copy] = []
    for name, pieces in shards.items():
        head = header(pieces, metadata[name])
        with (folder / name).open("wb") as file:
            file.write(head)
            file.truncate(len(head) + sum(piece.size for piece in pieces))
        jobs.extend(copies(pieces, folder / name, len(head)))
    copy_all(jobs)


def verify_shapes(shards: Shards, folder: Path) -> None:
    """Read the headers back and compare names, types and shapes with the plan's.

    Raises:
        ExciseError: a header does not hold the planned tensors.
    """
    for name, pieces in shards.items():
        stored, _ = read_header(folder / name)
        wanted = {piece.name: (piece.dtype, piece.shape) for piece in pieces}
        if {key: (tensor.dtype, tensor.shape) for key, tensor in stored.items()} != wanted:
            raise ExciseError(f"{folder / name}: the written header does not hold the planned tensors")
