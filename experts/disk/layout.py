"""A checkpoint as a model's shape and its MoE blocks, read from names, shapes and configuration.

There is no table of architectures.
"""

import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from experts.disk.blocks import Block, block_prefix, find_blocks
from experts.disk.configuration import (
    COUNT_KEYS,
    PREDICTING_KEYS,
    SHARED_KEYS,
    TOP_K_KEYS,
    UNEQUAL,
    first_positive,
    positive_int,
    router_groups,
    text_config,
)
from experts.disk.shards import Checkpoint, Stored
from experts.disk.tensors import LAYER, PREDICTION_HEAD
from experts.errors import ExciseError
from experts.shape import Shape


@dataclass(frozen=True)
class Layout:
    """A checkpoint as a model's shape and its MoE blocks.

    Attributes:
        checkpoint: configuration and tensors
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
        """Bytes of all tensors that an export would write if every expert were kept."""
        return self.checkpoint.size - sum(tensor.size for tensor in self.predicting)

    @property
    def expert_parameters(self) -> int:
        """Stored elements inside routed experts; of quantised formats, packed elements and scales."""
        return sum(block.expert_elements for block in self.blocks.values())

    @property
    def num_shared_experts(self) -> int:
        """Experts that every token passes, besides the routed ones."""
        count = first_positive(text_config(self.checkpoint.config), SHARED_KEYS)
        if count is not None:
            return count
        return int(any(re.search(r"\.shared_expert\.", name) for name in self.checkpoint.tensors))

    @property
    def family(self) -> str:
        """The model's type, as config.json names it."""
        return str(self.checkpoint.config.get("model_type", "unknown"))


@dataclass(frozen=True)
class _PredictionHeads:
    """Tensors of heads for multi-token prediction, by their names.

    Attributes:
        past_depth: in a layer with a number beyond the model's depth
        in_modules: in a module of a telling name
    """

    past_depth: Mapping[str, Stored]
    in_modules: Mapping[str, Stored]

    @property
    def tensors(self) -> tuple[Stored, ...]:
        return tuple({**self.past_depth, **self.in_modules}.values())


def lay_out(checkpoint: Checkpoint) -> Layout:
    """Sort a checkpoint's tensors into MoE blocks.

    Raises:
        ExciseError: the model is dense, or it could only be cut wrongly.
    """
    if UNEQUAL in checkpoint.config:
        raise ExciseError(
            f"{checkpoint.folder}: was pruned by Excise with unequal counts per layer; such a checkpoint "
            "is loaded and inspected, but not pruned or measured again: prune the model it was made from, "
            "with a smaller budget"
        )
    config = text_config(checkpoint.config)
    prefixes = _block_prefixes(checkpoint)
    heads = _prediction_heads(checkpoint, config, prefixes)
    of_decoder = sorted({prefix for name, prefix in prefixes.items() if name not in heads.past_depth})
    num_experts, top_k = _counts(checkpoint, config, has_experts=bool(of_decoder))
    _check_announced(checkpoint, config, heads)
    blocks = find_blocks(checkpoint, of_decoder, num_experts)
    groups, top_groups = _groups(checkpoint, config, num_experts)
    shape = Shape(tuple(sorted(blocks)), num_experts, top_k, groups, top_groups)
    return Layout(checkpoint, shape, blocks, heads.tensors)


def _block_prefixes(checkpoint: Checkpoint) -> dict[str, str]:
    """Name of a tensor of experts -> the prefix of its block."""
    prefixes = {}
    for name, tensor in checkpoint.tensors.items():
        prefix = block_prefix(tensor)
        if prefix:
            prefixes[name] = prefix
    return prefixes


def _prediction_heads(
    checkpoint: Checkpoint, config: Mapping[str, Any], prefixes: Mapping[str, str]
) -> _PredictionHeads:
    """The heads for multi-token prediction. prefixes: see `_block_prefixes`."""
    tensors = checkpoint.tensors
    depth = positive_int(config, "num_hidden_layers")
    stems = {name[: layer.start()] for name in prefixes if (layer := LAYER.search(name))}
    past_depth = {name: tensor for name, tensor in tensors.items() if _is_past_depth(name, depth, stems)}
    in_modules = {name: tensor for name, tensor in tensors.items() if PREDICTION_HEAD.search(name)}
    return _PredictionHeads(past_depth, in_modules)


def _is_past_depth(name: str, depth: int | None, stems: set[str]) -> bool:
    """Whether a tensor belongs to a layer past the decoder.

    Args:
        name: of the tensor
        depth: number of decoder layers, where the configuration has it
        stems: what comes before `layers.N.` in the decoder; towers count their layers for themselves
    """
    layer = LAYER.search(name)
    if depth is None or layer is None:
        return False
    return name[: layer.start()] in stems and int(layer.group(1)) >= depth


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
            f"{where}: num_experts_per_tok = {top_k} exceeds the {num_experts} experts per layer "
            f"({count_key})"
        )
    return num_experts, top_k


def _groups(checkpoint: Checkpoint, config: Mapping[str, Any], num_experts: int) -> tuple[int, int]:
    """Router groups, and how many of them a token may use."""
    groups, top_groups = router_groups(config)
    if num_experts % groups or top_groups > groups:
        raise ExciseError(
            f"{checkpoint.folder}/config.json: {num_experts} experts in {groups} groups, "
            f"of which a token may use {top_groups}, cannot be"
        )
    return groups, top_groups


def _check_announced(checkpoint: Checkpoint, config: Mapping[str, Any], heads: _PredictionHeads) -> None:
    """Refuse layers beyond the model's depth that the configuration does not announce."""
    if heads.past_depth and not first_positive(config, PREDICTING_KEYS):
        depth = positive_int(config, "num_hidden_layers")
        raise ExciseError(
            f"{checkpoint.folder}: {min(heads.past_depth)} belongs to layer {depth} or later, "
            f"but config.json says num_hidden_layers = {depth} and names no layers for multi-token "
            f"prediction ({PREDICTING_KEYS[0]}); fix config.json, or download the checkpoint again"
        )


def _why_none(checkpoint: Checkpoint, count_key: str | None, has_experts: bool) -> str:
    """Why a checkpoint has no MoE layer that Excise could prune."""
    model_type = reprlib.repr(checkpoint.config.get("model_type", "unknown"))
    kind = f"{checkpoint.folder}: model type {model_type}"
    if has_experts:
        return (
            f"{kind} has expert tensors, but config.json has none of {', '.join(COUNT_KEYS)}; "
            "cannot tell how many experts there are"
        )
    if count_key:
        return (
            f"{kind} counts experts in config.json, but no tensor is named …experts.…; "
            "this layout is not supported"
        )
    return f"{kind} is dense, without routed experts; there is nothing to prune"
