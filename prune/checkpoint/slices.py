"""Which bytes of a checkpoint a plan keeps: kept experts, their router rows, everything else."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from types import MappingProxyType

from experts.disk.blocks import Block
from experts.disk.layout import Layout
from experts.disk.quantised import PLAIN, plain_form
from experts.disk.shards import Stored
from experts.disk.tensors import ONE_EXPERT, expert_axis
from experts.errors import ExciseError
from experts.plan import Plan

UNCHANGED: Mapping[str, Stored] = MappingProxyType({})


@dataclass(frozen=True)
class NewTensor:
    """A tensor of the new checkpoint, made of byte ranges of one stored tensor.

    Attributes:
        name: its name in the new checkpoint, where experts are numbered anew.
        dtype: as safetensors writes it, for example BF16.
        shape: its shape in the new checkpoint.
        source: the stored tensor that its bytes are read from.
        ranges: (start, end) in the source's file, in bytes, in the order in which they are written.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    source: Stored
    ranges: tuple[tuple[int, int], ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(end - start for start, end in self.ranges)


Shards = dict[str, list[NewTensor]]  # shard file name -> its tensors
WRITTEN = "BF16"  # what experts are written in that were dequantised
WIDTH = 2  # bytes of such a number


def slice_layout(
    layout: Layout, plan: Plan, changed: Mapping[str, Stored] = UNCHANGED, *, dequantise: bool = False
) -> Shards:
    """Cut a checkpoint to what a plan keeps. Multi-token-prediction layers are left out.

    Args:
        changed: recovered weights: tensors of the new checkpoint by their names there, with their bytes in
            other files.
        dequantise: experts that are stored quantised become plain matrices in bfloat16. Their bytes have to
            come with `changed`; without them sizes and names are right, and nothing can be copied.

    Returns:
        Shard file name -> pieces, in the order of the source's bytes.

    Raises:
        ExciseError: the plan is of another model, or a changed tensor has no place in the new checkpoint.
    """
    plan.check_model(layout.shape.layers, layout.shape.num_experts)
    shards: Shards = {}
    pieces = _pieces(layout, plan)
    for piece in _dequantised(pieces, layout) if dequantise else pieces:
        shard = piece.source.file.name
        shards.setdefault(shard, []).append(_replaced(piece, changed.get(piece.name)))
    if unknown := changed.keys() - by_name(shards).keys():
        raise ExciseError(
            f"{layout.checkpoint.folder}: the pruned checkpoint has no tensor {min(unknown)}, "
            "so it cannot be changed"
        )
    return shards


def by_name(shards: Shards) -> dict[str, NewTensor]:
    """The pieces of all shards by the names of their tensors."""
    return {piece.name: piece for piece in chain.from_iterable(shards.values())}


def total_size(shards: Shards) -> int:
    """Bytes of all tensors of the new checkpoint."""
    return sum(piece.size for piece in chain.from_iterable(shards.values()))


def pruned_size(layout: Layout, plan: Plan, *, dequantise: bool = False) -> int:
    """Bytes of all tensors that the checkpoint of a plan has. dequantise: as in `slice_layout`."""
    if dequantise:
        return total_size(slice_layout(layout, plan, dequantise=True))
    return layout.checkpoint.size - removed_bytes(layout, plan)


def removed_bytes(layout: Layout, plan: Plan) -> int:
    """Bytes of tensors that a plan removes: its experts, their router rows, and all of the prediction layers.

    Exact: `layout.checkpoint.size - removed_bytes(layout, plan)` is the size of the new checkpoint's tensors.
    """
    experts = 0
    for layer, kept in plan.kept.items():
        experts += layout.bytes_per_expert[layer] * (layout.shape.num_experts - len(kept))
    return experts + sum(tensor.size for tensor in layout.predicting)


def _pieces(layout: Layout, plan: Plan) -> Iterator[NewTensor]:
    """What is left of every tensor, in the order of the source's bytes."""
    dropped = {tensor.name for tensor in layout.predicting}
    owners: dict[str, Block] = {}
    for block in layout.blocks.values():
        owners |= dict.fromkeys(_names(block), block)
    tensors = layout.checkpoint.tensors.values()
    for tensor in sorted(tensors, key=lambda tensor: (tensor.file.name, tensor.start)):
        if tensor.name in dropped:
            continue
        owner = owners.get(tensor.name)
        if owner is None:
            yield _whole(tensor, tensor.name)
        elif piece := _cut(tensor, plan.kept[owner.layer], layout.shape.num_experts):
            yield piece


def _dequantised(pieces: Iterable[NewTensor], layout: Layout) -> Iterator[NewTensor]:
    """The pieces with plain matrices in the place of quantised experts, and without their scales."""
    experts = {tensor.name for block in layout.blocks.values() for tensor in block.experts}
    for piece in pieces:
        if piece.source.name not in experts:
            yield piece
            continue
        plain = plain_form(piece.name, piece.dtype, piece.shape)
        if plain == (piece.name, piece.shape) and piece.dtype in PLAIN:
            yield piece
        elif plain is not None:
            name, shape = plain
            yield NewTensor(name, WRITTEN, shape, piece.source, ((0, math.prod(shape) * WIDTH),))


def _names(block: Block) -> Iterator[str]:
    """Names of the tensors of a block that have experts to lose."""
    for group in block.single.values():
        yield from (tensor.name for tensor in group)
    yield from (tensor.name for tensor in (*block.fused, *block.router))


def _whole(tensor: Stored, name: str) -> NewTensor:
    return NewTensor(name, tensor.dtype, tensor.shape, tensor, ((tensor.start, tensor.end),))


def _cut(tensor: Stored, kept: tuple[int, ...], num_experts: int) -> NewTensor | None:
    """What is left of a tensor of a MoE block; None for one that belongs to a removed expert alone."""
    single = ONE_EXPERT.match(tensor.name)
    if single is None:
        return _rows(tensor, kept, num_experts)
    expert = int(single["id"])
    if expert not in kept:
        return None
    return _whole(tensor, f"{single['block']}.experts.{kept.index(expert)}.{single['rest']}")


def _rows(tensor: Stored, kept: tuple[int, ...], num_experts: int) -> NewTensor:
    """The kept experts' rows of a fused or router tensor."""
    axis = expert_axis(tensor.shape, num_experts)
    assert axis is not None, "checked when it was laid out"
    size = tensor.size // num_experts
    shape = (*tensor.shape[:axis], len(kept), *tensor.shape[axis + 1 :])
    starts = [tensor.start + expert * size for expert in kept]
    return NewTensor(
        tensor.name, tensor.dtype, shape, tensor, tuple((start, start + size) for start in starts)
    )


def _replaced(piece: NewTensor, changed: Stored | None) -> NewTensor:
    """The piece with the bytes of a changed tensor, which must be stored alike."""
    if changed is None:
        return piece
    if (changed.dtype, changed.shape) != (piece.dtype, piece.shape):
        now = f"{changed.dtype} {list(changed.shape)}"
        raise ExciseError(f"{piece.name}: changed to {now}, stored as {piece.dtype} {list(piece.shape)}")
    return replace(piece, source=changed, ranges=((changed.start, changed.end),))
