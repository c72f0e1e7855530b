"""Which bytes of a checkpoint survive a plan: kept experts, kept router rows, everything else. No torch."""

import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from experts.disk.blocks import Block
from experts.disk.configuration import (
    COUNT_KEYS,
    PREDICTING_KEYS,
    UNEQUAL,
    positive_int,
    text_config,
)
from experts.disk.layout import Layout
from experts.disk.shards import Stored
from experts.disk.tensors import ONE_EXPERT, expert_axis
from experts.errors import ExciseError
from experts.plan import Plan
from prune.checkpoint.quantization import QUANTIZATION_KEYS, renumbered
from prune.checkpoint.run_options import corrected_options

READERS = (
    "AutoModelForCausalLM",
    "AutoModelForImageTextToText",
)  # transformers files some language models under the second only


@dataclass(frozen=True)
class Piece:
    """A tensor of the new checkpoint: the source's byte ranges, one after the other."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    source: Stored
    ranges: tuple[tuple[int, int], ...]

    @property
    def size(self) -> int:
        return sum(end - start for start, end in self.ranges)


def slice_layout(
    layout: Layout, plan: Plan, changed: Mapping[str, Stored] = MappingProxyType({})
) -> dict[str, list[Piece]]:
    """Shard file name -> pieces, in the order of the source's bytes. Multi-token-prediction layers are left out.

    changed: tensors of the new checkpoint, by their names there, whose bytes stand elsewhere (recovered weights).
    """
    plan.check_model(layout.shape.layers, layout.shape.num_experts)
    dropped = {tensor.name for tensor in layout.predicting}
    owners = {name: block for block in layout.blocks.values() for name in _names(block)}
    shards: dict[str, list[Piece]] = {}
    for tensor in sorted(
        layout.checkpoint.tensors.values(), key=lambda tensor: (tensor.file.name, tensor.start)
    ):
        if tensor.name in dropped:
            continue
        block = owners.get(tensor.name)
        piece = (
            _whole(tensor)
            if block is None
            else _cut(tensor, plan.kept[block.layer], layout.shape.num_experts)
        )
        if piece is not None:
            shards.setdefault(tensor.file.name, []).append(_replaced(piece, changed.get(piece.name)))
    if unknown := changed.keys() - {piece.name for pieces in shards.values() for piece in pieces}:
        raise ExciseError(
            f"{layout.checkpoint.folder}: the pruned checkpoint has no tensor {min(unknown)}, so it cannot be changed"
        )
    return shards


def _replaced(piece: Piece, other: Stored | None) -> Piece:
    if other is None:
        return piece
    if (other.dtype, other.shape) != (piece.dtype, piece.shape):
        raise ExciseError(
            f"{piece.name}: changed to {other.dtype} {list(other.shape)}, stored as {piece.dtype} {list(piece.shape)}"
        )
    return replace(piece, source=other, ranges=((other.start, other.end),))


def removed_bytes(layout: Layout, plan: Plan) -> int:
    """Exactly the bytes of the removed experts and router rows, and of dropped prediction layers."""
    gone = sum(
        layout.bytes_per_expert[layer] * (layout.shape.num_experts - len(ids))
        for layer, ids in plan.kept.items()
    )
    return gone + sum(tensor.size for tensor in layout.predicting)


def header(pieces: list[Piece], metadata: Mapping[str, str]) -> bytes:
    """The safetensors header of a new shard, padded with spaces to 8 bytes as the reference writer does."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for piece in pieces:
        entries[piece.name] = {
            "dtype": piece.dtype,
            "shape": list(piece.shape),
            "data_offsets": [position, position + piece.size],
        }
        position += piece.size
    raw = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw


def patched_config(layout: Layout, plan: Plan) -> dict[str, Any]:
    """The original configuration with the expert count changed; unequal counts point to modeling_excise.py instead.

    Besides: the numbers of experts in quantisation settings, prediction layers that are gone, options it could not be run with.
    """
    config: dict[str, Any] = copy.deepcopy(dict(layout.checkpoint.config))
    text: Any = text_config(config)
    if plan.uniform:
        for key in COUNT_KEYS:
            if positive_int(text, key) == layout.shape.num_experts:
                text[key] = _counted(text[key], len(next(iter(plan.kept.values()))))
    else:
        config[UNEQUAL] = {str(layer): count for layer, count in sorted(plan.counts.items())}
        config["auto_map"] = _auto_map(config, layout.checkpoint.folder)
    for table in [config] if text is config else [config, text]:
        for key in QUANTIZATION_KEYS:
            if isinstance(quantized := table.get(key), dict):
                table[key] = renumbered(quantized, plan, f"{layout.checkpoint.folder}/config.json: {key}")
    for table, key in (
        (table, key)
        for table in (config, text)
        for key in PREDICTING_KEYS
        if layout.predicting and table.get(key)
    ):
        table[key] = 0
    for key, value in corrected_options(config, plan).items():
        for table in (config, text):
            if key in table:
                table[key] = value
    return config


def _counted(before: Any, count: int) -> Any:
    """The new count, in the form of the old one: some write a list with the same number for every layer."""
    return [count] * len(before) if isinstance(before, list) else count


def _auto_map(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Our class, of the library's own architecture. The source's code for models goes: whoever trusts our file did not ask for that one."""
    named, found = config.get("architectures"), config.get("auto_map")
    architecture = named[0] if isinstance(named, list) and named else None
    if not isinstance(architecture, str) or not architecture.isidentifier():
        raise ExciseError(
            f"{folder}/config.json: no architecture named, which unequal counts per layer need; use scope layer"
        )
    others = found if isinstance(found, dict) else {}
    kept = {
        key: value for key, value in others.items() if key != "AutoConfig" and not key.startswith("AutoModel")
    }
    return {**kept, **dict.fromkeys(READERS, f"modeling_excise.{architecture}")}


def _names(block: Block) -> Iterator[str]:
    for group in block.single.values():
        yield from (tensor.name for tensor in group)
    yield from (tensor.name for tensor in (*block.fused, *block.router))


def _whole(tensor: Stored) -> Piece:
    return Piece(tensor.name, tensor.dtype, tensor.shape, tensor, ((tensor.start, tensor.end),))


def _cut(tensor: Stored, kept: tuple[int, ...], experts: int) -> Piece | None:
    one = ONE_EXPERT.match(tensor.name)
    if one:
        if int(one["id"]) not in kept:
            return None
        name = f"{one['block']}.experts.{kept.index(int(one['id']))}.{one['rest']}"
        return Piece(name, tensor.dtype, tensor.shape, tensor, ((tensor.start, tensor.end),))
    axis = expert_axis(tensor.shape, experts)
    assert axis is not None, "checked when it was laid out"
    row, shape = tensor.size // experts, (*tensor.shape[:axis], len(kept), *tensor.shape[axis + 1 :])
    ranges = [(tensor.start + i * row, tensor.start + (i + 1) * row) for i in kept]
    return Piece(tensor.name, tensor.dtype, shape, tensor, tuple(ranges))
