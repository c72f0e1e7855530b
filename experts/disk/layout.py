"""What the tensors of a checkpoint are: read from their names, shapes and the configuration. No torch, no table of architectures.

Experts stand either one by one (`…experts.7.down_proj.weight`) or fused with the expert axis first (`…experts.down_proj`, Granite's
`…input_linear`). Router tensors stand beside them, in the same block or decoder layer, with E rows.
"""

import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from experts.disk.configuration import (
    COMMON,
    COUNT_KEYS,
    LAYER,
    PREDICTING_KEYS,
    ROUTER_TENSORS,
    ROUTERS,
    TOP_K_KEYS,
    UNEQUAL,
    expert_axis,
    first_positive,
    in_tower,
    positive_int,
    router_groups,
    text_config,
)
from experts.disk.shards import Checkpoint, Stored
from experts.errors import ExciseError
from experts.shape import Shape

SHARED_KEYS = ("n_shared_experts", "num_shared_experts", "num_shared_expert", "moe_num_shared_experts")
BESIDE = frozenset(
    {"e_score_correction_bias", "expert_bias"}
)  # router tensors that may stand beside the experts themselves
QUANTISED = re.compile(
    r"weight_scale|scale_inv|qweight|qzeros|packed|g_idx|\.scales$"
)  # in the name of a tensor beside a quantised weight
ONE_EXPERT = re.compile(r"^(?P<block>.+)\.experts\.(?P<id>\d+)\.(?P<rest>.+)$")
FUSED = re.compile(r"^(?P<block>.+)\.experts\.(?P<rest>[^.\d].*)$")
PREDICTING = re.compile(r"(^|\.)mtp(_\w+)?\.")  # a head for multi-token prediction in a module of its own
STACKED = re.compile(
    r"^(?P<block>.+)\.(input|output)_linear\.weight$"
)  # all experts of a layer, as Granite names them


@dataclass(frozen=True)
class Block:
    """One MoE layer of a checkpoint. single: expert id -> its tensors; fused and router tensors have E rows on axis 0."""

    layer: int
    prefix: str
    single: Mapping[int, tuple[Stored, ...]]
    fused: tuple[Stored, ...]
    router: tuple[Stored, ...]

    def expert_bytes(self, experts: int) -> int:
        """Bytes that go when one expert goes, its router row included (all experts of a layer are alike)."""
        single = sum(tensor.size for tensor in self.single.get(0, ()))
        return single + sum(tensor.size // experts for tensor in (*self.fused, *self.router))


@dataclass(frozen=True)
class Layout:
    """A checkpoint as a model's shape and its MoE blocks.

    shape: L, E, k and router groups, as config.json and the tensors agree on them
    blocks: decoder layer -> its MoE block, L of them
    predicting: tensors of heads for multi-token prediction, which an export drops
    """

    checkpoint: Checkpoint
    shape: Shape
    blocks: Mapping[int, Block]
    predicting: tuple[Stored, ...]

    @cached_property
    def bytes_per_expert(self) -> dict[int, int]:
        """Decoder layer -> bytes that go when one of its experts goes."""
        return {layer: block.expert_bytes(self.shape.num_experts) for layer, block in self.blocks.items()}

    @property
    def kept_size(self) -> int:
        """Bytes of all tensors that an export would write if every expert stayed."""
        return self.checkpoint.size - sum(tensor.size for tensor in self.predicting)

    @property
    def expert_parameters(self) -> int:
        """Stored elements inside routed experts (quantised formats count packed elements and scales)."""
        blocks = self.blocks.values()
        single = sum(
            tensor.elements for block in blocks for group in block.single.values() for tensor in group
        )
        return single + sum(tensor.elements for block in blocks for tensor in block.fused)

    @property
    def shared(self) -> int:
        """Experts that every token passes, besides the routed ones."""
        config = text_config(self.checkpoint.config)
        counted = first_positive(config, SHARED_KEYS)
        if counted is not None:
            return counted
        return int(any(re.search(r"\.shared_expert\.", name) for name in self.checkpoint.tensors))

    @property
    def family(self) -> str:
        """The model's type, as config.json names it."""
        return str(self.checkpoint.config.get("model_type", "unknown"))


def lay_out(checkpoint: Checkpoint) -> Layout:
    """Sorts the tensors into blocks. Raises ExciseError for a dense model and for anything it could only cut wrongly."""
    if UNEQUAL in checkpoint.config:
        raise ExciseError(
            f"{checkpoint.folder}: was pruned by Excise with unequal counts per layer; such a checkpoint is loaded and inspected, but not "
            "pruned or measured again: prune the model it was made from, with a smaller budget"
        )
    config = text_config(checkpoint.config)
    homes = {name: home for name, tensor in checkpoint.tensors.items() if (home := _home(tensor))}
    predicting = _predicting(checkpoint, config, homes)
    prefixes = sorted({home for name, home in homes.items() if name not in predicting.behind})
    num_experts, top_k = _counts(checkpoint, config, bool(prefixes))
    _check_behind(checkpoint, config, predicting)
    blocks = _blocks(checkpoint, prefixes, num_experts)
    groups, top_groups = router_groups(config)
    if num_experts % groups or top_groups > groups:
        where = f"{checkpoint.folder}/config.json"
        raise ExciseError(
            f"{where}: {num_experts} experts in {groups} groups, of which a token may use {top_groups}, cannot be"
        )
    shape = Shape(tuple(sorted(blocks)), num_experts, top_k, groups, top_groups)
    return Layout(checkpoint, shape, blocks, tuple(predicting.tensors.values()))


@dataclass(frozen=True)
class _Predicting:
    """Tensors of heads for multi-token prediction. behind: those known by a layer number beyond the model's depth."""

    behind: Mapping[str, Stored]
    named: Mapping[str, Stored]

    @property
    def tensors(self) -> dict[str, Stored]:
        return {**self.behind, **self.named}


def _predicting(checkpoint: Checkpoint, config: Mapping[str, Any], homes: Mapping[str, str]) -> _Predicting:
    depth = positive_int(config, "num_hidden_layers")
    stems = {found.string[: found.start()] for name in homes if (found := LAYER.search(name))}
    behind = {name: tensor for name, tensor in checkpoint.tensors.items() if _behind(name, depth, stems)}
    named = {name: tensor for name, tensor in checkpoint.tensors.items() if PREDICTING.search(name)}
    return _Predicting(behind, named)


def _counts(checkpoint: Checkpoint, config: Mapping[str, Any], has_experts: bool) -> tuple[int, int]:
    """E and k of config.json."""
    count_key = next((key for key in COUNT_KEYS if config.get(key)), None)
    if not has_experts or count_key is None:
        raise ExciseError(_why_none(checkpoint, count_key, has_experts))
    num_experts, top_k = positive_int(config, count_key), first_positive(config, TOP_K_KEYS)
    where = f"{checkpoint.folder}/config.json"
    if num_experts is None or top_k is None:
        raise ExciseError(f"{where}: none of {', '.join(TOP_K_KEYS)}: how many experts are active per token?")
    if top_k > num_experts:
        raise ExciseError(
            f"{where}: num_experts_per_tok = {top_k} exceeds the {num_experts} experts per layer ({count_key})"
        )
    return num_experts, top_k


def _check_behind(checkpoint: Checkpoint, config: Mapping[str, Any], predicting: _Predicting) -> None:
    """Layers beyond the model's depth have to be announced."""
    if predicting.behind and not first_positive(config, PREDICTING_KEYS):
        depth = positive_int(config, "num_hidden_layers")
        raise ExciseError(
            f"{checkpoint.folder}: {min(predicting.behind)} belongs to layer {depth} or later, but config.json says "
            f"num_hidden_layers = {depth} and names no layers for multi-token prediction ({PREDICTING_KEYS[0]}); "
            "fix config.json, or download the checkpoint again"
        )


def _blocks(checkpoint: Checkpoint, prefixes: list[str], num_experts: int) -> dict[int, Block]:
    """Decoder layer -> its MoE block."""
    inside = _by_layer(checkpoint)
    blocks = [_block(checkpoint, prefix, num_experts, inside) for prefix in prefixes]
    by_layer = {block.layer: block for block in blocks}
    if len(by_layer) < len(blocks):
        raise ExciseError(
            f"{checkpoint.folder}: two MoE blocks in one decoder layer ({prefixes}); this layout is not supported"
        )
    return by_layer


def _home(tensor: Stored) -> str | None:
    """The block whose experts a tensor belongs to; None for all others, in towers and in heads for multi-token prediction."""
    if PREDICTING.search(tensor.name) or in_tower(tensor.name):
        return None
    if ".experts." in tensor.name:
        return tensor.name.partition(".experts.")[0]
    stacked = STACKED.match(tensor.name)
    return stacked["block"] if stacked and len(tensor.shape) == 3 else None


def _behind(name: str, depth: int | None, stems: set[str]) -> bool:
    """Whether a tensor belongs to a layer past the decoder: a head for multi-token prediction.

    stems: what stands before `layers.N.` in the decoder; a vision or audio tower counts its layers for itself.
    """
    found = LAYER.search(name)
    return (
        depth is not None
        and found is not None
        and name[: found.start()] in stems
        and int(found.group(1)) >= depth
    )


def _by_layer(checkpoint: Checkpoint) -> dict[str, list[Stored]]:
    """What names begin with, up to the decoder layer's number -> its tensors; a checkpoint may have a hundred thousand."""
    inside: dict[str, list[Stored]] = {}
    for name, tensor in checkpoint.tensors.items():
        if found := LAYER.search(name):
            inside.setdefault(name[: found.end()], []).append(tensor)
    return inside


def _block(checkpoint: Checkpoint, prefix: str, experts: int, inside: Mapping[str, list[Stored]]) -> Block:
    """inside: see _by_layer."""
    number = LAYER.search(prefix + ".")
    if number is None:
        raise ExciseError(f"{checkpoint.folder}: cannot tell the decoder layer of {prefix}.experts")
    single: dict[int, list[Stored]] = {}
    fused, router = [], []
    for tensor in inside[number.string[: number.end()]]:
        name = tensor.name
        if not name.startswith(prefix + "."):  # some write the router beside the block of the experts
            if _routes(name[number.end() :]) and expert_axis(tensor.shape, experts) is not None:
                _need_rows(tensor, experts)
                router.append(tensor)
        elif COMMON in name.split(".") or (tensor.elements == 1 and FUSED.match(name)):
            continue  # one for all experts
        elif one := ONE_EXPERT.match(name):
            single.setdefault(int(one["id"]), []).append(tensor)
        elif FUSED.match(name) or _home(tensor) == prefix:
            _need_rows(tensor, experts)
            fused.append(tensor)
        elif _belongs_to_router(
            tensor,
            name[len(prefix) + 1 :],
            experts,
            whole_layer=f"{prefix}." == number.string[: number.end()],
        ):
            router.append(tensor)
    _check_experts(checkpoint, prefix, single, experts)
    if not any(len(tensor.shape) == 2 and tensor.shape[0] == experts for tensor in router):
        raise ExciseError(
            f"{checkpoint.folder}: {prefix} has experts but no gate or router tensor of {experts} rows"
        )
    return Block(
        int(number.group(1)),
        prefix,
        {i: tuple(group) for i, group in single.items()},
        tuple(fused),
        tuple(router),
    )


def _routes(path: str) -> bool:
    """Whether a path inside a decoder layer or block leads to one of a router's tensors."""
    *modules, leaf = path.split(".")
    ours = bool(ROUTERS.intersection(modules)) or (not modules and leaf in BESIDE)
    return (
        ours
        and leaf in ROUTER_TENSORS
        and not any("shared" in module or "attn" in module for module in modules)
    )


def _belongs_to_router(tensor: Stored, path: str, experts: int, whole_layer: bool) -> bool:
    """Of a tensor of a block outside its experts. Refuses what has the experts' number of rows and is not known.

    whole_layer: the experts stand in the decoder layer itself, where attention and norms may have that many rows by chance.
    """
    if path in ("gate.weight", "router.weight"):
        _need_rows(tensor, experts)
    if (
        ROUTERS.intersection(path.split("."))
        and tensor.dtype.startswith(("I", "U"))
        and len(tensor.shape) == 2
    ):
        raise ExciseError(
            f"{tensor.file}: {tensor.name} is a table of whole numbers: a router that chooses experts by token id cannot be cut"
        )
    if expert_axis(tensor.shape, experts) is None:
        if tensor.elements > 1 and ROUTERS.intersection(path.split(".")) and QUANTISED.search(path):
            raise ExciseError(
                f"{tensor.file}: {tensor.name} belongs to a quantised router, whose rows cannot be cut"
            )
        return False
    if _routes(path):
        _need_rows(tensor, experts)
        return True
    if "shared" in path or whole_layer:
        return False
    raise ExciseError(
        f"{tensor.file}: {tensor.name} has {experts} rows and is not a known router tensor: refusing to prune around it"
    )


def _need_rows(tensor: Stored, experts: int) -> None:
    if expert_axis(tensor.shape, experts) is None or tensor.size % experts:
        raise ExciseError(
            f"{tensor.file}: {tensor.name} has shape {list(tensor.shape)}, expected {experts} experts on the first axis"
        )


def _check_experts(
    checkpoint: Checkpoint, prefix: str, single: dict[int, list[Stored]], experts: int
) -> None:
    if not single:
        return
    if len(single) != experts or sorted(single) != list(range(experts)):
        raise ExciseError(
            f"{checkpoint.folder}: {prefix} holds experts {_brief(sorted(single))}, config.json promises {experts}"
        )
    signatures = {
        i: sorted((t.name.rpartition(f".experts.{i}.")[2], t.dtype, t.shape) for t in group)
        for i, group in single.items()
    }
    if odd := [i for i in signatures if signatures[i] != signatures[0]]:
        more, less = ({name for name, *_ in signatures[i]} for i in (odd[0], 0))
        shown = ", ".join(sorted(more ^ less)[:3]) or "other types or shapes"
        where = f"{checkpoint.folder}: expert {odd[0]} of {prefix} is not stored like expert 0 ({shown})"
        raise ExciseError(
            f"{where}: a shard is missing, or experts have different precisions, which is not supported"
        )


def _brief(ids: list[int]) -> str:
    return f"{ids[0]}..{ids[-1]} ({len(ids)} of them)"


def _why_none(checkpoint: Checkpoint, count_key: str | None, has_experts: bool) -> str:
    kind = f"{checkpoint.folder}: model type {reprlib.repr(checkpoint.config.get('model_type', 'unknown'))}"
    if has_experts:
        return f"{kind} has expert tensors, but config.json has none of {', '.join(COUNT_KEYS)}; cannot tell how many experts there are"
    if count_key:
        return f"{kind} counts experts in config.json, but no tensor is named …experts.…; this layout is not supported"
    return f"{kind} is dense, without routed experts; there is nothing to prune"
