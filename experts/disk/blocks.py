"""The MoE blocks of a checkpoint: which tensors are experts, which belong to the router.

Experts are stored either one by one (`…experts.7.down_proj.weight`) or fused with the expert axis first
(`…experts.down_proj`, Granite's `…input_linear`). Router tensors lie beside them, in the same block or
decoder layer, and have E rows.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto

from experts.disk.shards import Checkpoint, Stored
from experts.disk.tensors import (
    BESIDE_EXPERTS,
    FUSED_EXPERTS,
    LAYER,
    ONE_EXPERT,
    PREDICTION_HEAD,
    QUANTIZED,
    ROUTER_TENSORS,
    ROUTERS,
    SHARED_NORM,
    STACKED_EXPERTS,
    expert_axis,
    in_tower,
)
from experts.errors import ExciseError


@dataclass(frozen=True)
class Block:
    """One MoE layer of a checkpoint.

    Attributes:
        layer: decoder layer
        prefix: what the names of its tensors begin with
        single: expert id -> its tensors, where experts are stored one by one
        fused: tensors of all experts [E, …]
        router: the router's tensors, with E rows
    """

    layer: int
    prefix: str
    single: Mapping[int, tuple[Stored, ...]]
    fused: tuple[Stored, ...]
    router: tuple[Stored, ...]

    def expert_bytes(self, num_experts: int) -> int:
        """Bytes that go when one of the E experts goes, its router row included; all are of one size."""
        single = sum(tensor.size for tensor in self.single.get(0, ()))
        return single + sum(tensor.size // num_experts for tensor in (*self.fused, *self.router))

    @property
    def experts(self) -> Iterator[Stored]:
        """The tensors of all its experts, without the router."""
        return itertools.chain(*self.single.values(), self.fused)

    @property
    def expert_elements(self) -> int:
        """Stored elements of all its experts, without the router."""
        return sum(tensor.elements for tensor in self.experts)


class _Part(Enum):
    """What a tensor is in the layer of an MoE block."""

    ONE_EXPERT = auto()
    FUSED_EXPERTS = auto()
    ROUTER = auto()
    OTHER = auto()


def block_prefix(tensor: Stored) -> str | None:
    """The block whose experts a tensor belongs to.

    None for all other tensors, those of towers, and those of heads for multi-token prediction.
    """
    if PREDICTION_HEAD.search(tensor.name) or in_tower(tensor.name):
        return None
    if ".experts." in tensor.name:
        return tensor.name.partition(".experts.")[0]
    stacked = STACKED_EXPERTS.match(tensor.name)
    return stacked["block"] if stacked and len(tensor.shape) == 3 else None


def find_blocks(checkpoint: Checkpoint, prefixes: list[str], num_experts: int) -> dict[int, Block]:
    """Sort the tensors of every MoE block.

    Args:
        checkpoint: configuration and tensors
        prefixes: what the names of each block's tensors begin with
        num_experts: E

    Returns:
        Decoder layer -> its MoE block.

    Raises:
        ExciseError: two blocks share a layer, or a tensor could only be cut wrongly.
    """
    tensors = _by_layer(checkpoint)
    blocks = [_block(checkpoint, prefix, num_experts, tensors) for prefix in prefixes]
    by_layer = {block.layer: block for block in blocks}
    if len(by_layer) < len(blocks):
        raise ExciseError(
            f"{checkpoint.folder}: two MoE blocks in one decoder layer ({prefixes}); "
            "this layout is not supported"
        )
    return by_layer


def _by_layer(checkpoint: Checkpoint) -> dict[str, list[Stored]]:
    """A name up to its layer's number -> the tensors there. A checkpoint may have a hundred thousand."""
    tensors: dict[str, list[Stored]] = {}
    for name, tensor in checkpoint.tensors.items():
        if layer := LAYER.search(name):
            tensors.setdefault(name[: layer.end()], []).append(tensor)
    return tensors


def _block(
    checkpoint: Checkpoint, prefix: str, num_experts: int, by_layer: Mapping[str, list[Stored]]
) -> Block:
    """The block of one prefix. by_layer: see `_by_layer`."""
    layer = LAYER.search(f"{prefix}.")
    if layer is None:
        raise ExciseError(f"{checkpoint.folder}: cannot tell the decoder layer of {prefix}.experts")
    layer_prefix = f"{prefix}."[: layer.end()]
    single: dict[int, list[Stored]] = {}
    parts: dict[_Part, list[Stored]] = {part: [] for part in _Part}
    for tensor in by_layer[layer_prefix]:
        part = _part(tensor, prefix, layer_prefix, num_experts)
        parts[part].append(tensor)
        if part is _Part.ONE_EXPERT:
            single.setdefault(_expert_id(tensor), []).append(tensor)
    fused, router = parts[_Part.FUSED_EXPERTS], parts[_Part.ROUTER]
    _check_single(checkpoint, prefix, single, num_experts)
    if not any(len(tensor.shape) == 2 and tensor.shape[0] == num_experts for tensor in router):
        raise ExciseError(
            f"{checkpoint.folder}: {prefix} has experts but no gate or router tensor of {num_experts} rows"
        )
    experts = {expert: tuple(tensors) for expert, tensors in single.items()}
    return Block(int(layer.group(1)), prefix, experts, tuple(fused), tuple(router))


def _part(tensor: Stored, prefix: str, layer_prefix: str, num_experts: int) -> _Part:
    """What a tensor of the block's layer is. Refuses experts and routers without a row for each expert."""
    if not tensor.name.startswith(f"{prefix}."):
        part = _part_beside(tensor, tensor.name.removeprefix(layer_prefix), num_experts)
    elif _is_shared(tensor):
        part = _Part.OTHER
    elif ONE_EXPERT.match(tensor.name):
        part = _Part.ONE_EXPERT
    elif FUSED_EXPERTS.match(tensor.name) or block_prefix(tensor) == prefix:
        part = _Part.FUSED_EXPERTS
    else:
        path = tensor.name.removeprefix(f"{prefix}.")
        part = _part_around(tensor, path, num_experts, is_layer=f"{prefix}." == layer_prefix)
    if part in (_Part.FUSED_EXPERTS, _Part.ROUTER):
        _check_rows(tensor, num_experts)
    return part


def _part_beside(tensor: Stored, path: str, num_experts: int) -> _Part:
    """What a tensor of the layer outside the block is: some checkpoints write the router beside the block."""
    routes = _is_router_path(path) and expert_axis(tensor.shape, num_experts) is not None
    return _Part.ROUTER if routes else _Part.OTHER


def _part_around(tensor: Stored, path: str, num_experts: int, is_layer: bool) -> _Part:
    """What a tensor of the block outside its experts is. Refuses what has E rows and is not known.

    Args:
        tensor: the tensor
        path: its name in the block
        num_experts: E
        is_layer: the block is the decoder layer itself, whose attention and norms may have E rows by chance
    """
    in_router = bool(ROUTERS.intersection(path.split(".")))
    if path in ("gate.weight", "router.weight"):
        _check_rows(tensor, num_experts)
    if in_router:
        _check_no_table(tensor)
    if expert_axis(tensor.shape, num_experts) is None:
        if in_router and tensor.elements > 1 and QUANTIZED.search(path):
            raise ExciseError(
                f"{tensor.file}: {tensor.name} belongs to a quantised router, whose rows cannot be cut"
            )
        return _Part.OTHER
    if _is_router_path(path):
        return _Part.ROUTER
    if "shared" in path or is_layer:
        return _Part.OTHER
    raise ExciseError(
        f"{tensor.file}: {tensor.name} has {num_experts} rows and is not a known router tensor: "
        "refusing to prune around it"
    )


def _is_shared(tensor: Stored) -> bool:
    """Whether a tensor among the experts is one for all of them."""
    is_scalar = tensor.elements == 1 and FUSED_EXPERTS.match(tensor.name) is not None
    return is_scalar or SHARED_NORM in tensor.name.split(".")


def _is_router_path(path: str) -> bool:
    """Whether a name inside a decoder layer or block leads to one of a router's tensors."""
    *modules, leaf = path.split(".")
    if any("shared" in module or "attn" in module for module in modules):
        return False
    in_router = bool(ROUTERS.intersection(modules)) or (not modules and leaf in BESIDE_EXPERTS)
    return in_router and leaf in ROUTER_TENSORS


def _expert_id(tensor: Stored) -> int:
    named = ONE_EXPERT.match(tensor.name)
    assert named is not None, "its name says so"
    return int(named["id"])


def _check_no_table(tensor: Stored) -> None:
    if tensor.dtype.startswith(("I", "U")) and len(tensor.shape) == 2:
        raise ExciseError(
            f"{tensor.file}: {tensor.name} is a table of whole numbers: "
            "a router that chooses experts by token id cannot be cut"
        )


def _check_rows(tensor: Stored, num_experts: int) -> None:
    if expert_axis(tensor.shape, num_experts) is None or tensor.size % num_experts:
        raise ExciseError(
            f"{tensor.file}: {tensor.name} has shape {list(tensor.shape)}, "
            f"expected {num_experts} experts on the first axis"
        )


def _check_single(
    checkpoint: Checkpoint, prefix: str, single: Mapping[int, list[Stored]], num_experts: int
) -> None:
    """Experts that are stored one by one: all there, and all alike."""
    if not single:
        return
    ids = sorted(single)
    if len(ids) != num_experts or ids != list(range(num_experts)):
        raise ExciseError(
            f"{checkpoint.folder}: {prefix} holds experts {ids[0]}..{ids[-1]} ({len(ids)} of them), "
            f"config.json promises {num_experts}"
        )
    first = _signature(0, single[0])
    for expert, tensors in single.items():
        if _signature(expert, tensors) != first:
            _refuse_unlike(checkpoint, prefix, expert, single)


def _signature(expert: int, tensors: list[Stored]) -> list[tuple[str, str, tuple[int, ...]]]:
    """Name within the expert, type and shape of all its tensors, sorted."""
    within = f".experts.{expert}."
    return sorted((tensor.name.rpartition(within)[2], tensor.dtype, tensor.shape) for tensor in tensors)


def _refuse_unlike(
    checkpoint: Checkpoint, prefix: str, expert: int, single: Mapping[int, list[Stored]]
) -> None:
    of_expert, of_first = (
        {name for name, _, _ in _signature(number, single[number])} for number in (expert, 0)
    )
    unshared = sorted(of_expert ^ of_first)[:3]
    difference = ", ".join(unshared) or "other types or shapes"
    raise ExciseError(
        f"{checkpoint.folder}: expert {expert} of {prefix} is not stored like expert 0 ({difference}): "
        "a shard is missing, or experts have different precisions, which is not supported"
    )
