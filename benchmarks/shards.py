"""Safetensors shards of synthetic checkpoints: true headers; data from a function, or holes of sparse files.

Nothing here uses Excise, so that it can stand as evidence about it.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

BYTES = {"F8_E4M3": 1, "BF16": 2, "F32": 4}
BLOCK = 128  # rows and columns that share a scale
Spec = tuple[str, str, tuple[int, ...]]
Data = Callable[[Spec], bytes]


def size(spec: Spec) -> int:
    return BYTES[spec[1]] * math.prod(spec[2])


def quantised(name: str, rows: int, columns: int) -> Iterator[Spec]:
    """A weight in FP8 and its scales; the last block may be cut off."""
    yield f"{name}.weight", "F8_E4M3", (rows, columns)
    yield f"{name}.weight_scale_inv", "F32", (-(-rows // BLOCK), -(-columns // BLOCK))


def write_sparse(folder: Path, specs: Iterable[Spec], config: dict[str, object], shard: int) -> None:
    """A checkpoint that takes no space on the disk: reading gives zeros.

    Args:
        folder: is made
        specs: its tensors, in the order of the files
        config: of config.json
        shard: bytes of a shard at most
    """
    _write(folder, specs, config, shard, None)


def write_checkpoint(
    folder: Path, specs: Iterable[Spec], config: dict[str, object], shard: int, data: Data
) -> None:
    """A checkpoint with data; no more than a tensor of it is in memory.

    Args:
        folder: is made
        specs: its tensors, in the order of the files
        config: of config.json
        shard: bytes of a shard at most
        data: the bytes of a tensor
    """
    _write(folder, specs, config, shard, data)


def write_shard(path: Path, specs: list[Spec], data: Data | None) -> None:
    """One file; without data it is sparse."""
    header, position = {}, 0
    for spec in specs:
        end = position + size(spec)
        header[spec[0]] = {"dtype": spec[1], "shape": spec[2], "data_offsets": [position, end]}
        position = end
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        if data is None:
            file.truncate(8 + len(raw) + position)
            return
        for spec in specs:
            file.write(data(spec))


def _write(
    folder: Path, specs: Iterable[Spec], config: dict[str, object], shard: int, data: Data | None
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shards = list(_filled(specs, shard))
    weights = {}
    for number, inside in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        weights |= dict.fromkeys((spec[0] for spec in inside), name)
        write_shard(folder / name, inside, data)
    total = sum(size(spec) for inside in shards for spec in inside)
    index = {"metadata": {"total_size": total}, "weight_map": weights}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config, indent=2))


def _filled(specs: Iterable[Spec], most: int) -> Iterator[list[Spec]]:
    """The tensors of each shard."""
    inside: list[Spec] = []
    filled = 0
    for spec in specs:
        if inside and filled + size(spec) > most:
            yield inside
            inside, filled = [], 0
        inside.append(spec)
        filled += size(spec)
    yield inside
