"""Find a model's layers of routed experts, by structure alone.

An experts module is one that transformers routes through its experts interface
(`transformers.integrations.moe`): it carries the marks which that decorator leaves, holds parameters with the
expert axis first and is called with hidden states [T, H], expert ids [T, k] and gate weights [T, k]. Its
parent is the MoE block; the router is the sibling with a weight of E rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from experts.disk.configuration import COUNT_KEYS, TOP_K_KEYS, router_groups
from experts.disk.tensors import (
    ROUTER_TENSORS,
    ROUTERS,
    SHARED_NORM,
    expert_axis,
    in_tower,
    is_whole_layer,
    list_of,
    numbers_in,
)
from experts.errors import ExciseError
from experts.plain_outputs import set_plain_outputs
from experts.room import UNBOUNDED, Room
from experts.shape import Shape
from experts.team import Alone, Team
from experts.weights import LayerWeights, Resident

MOST_EXTRA = 8  # router rows that may belong to shared or skipped experts


@dataclass(frozen=True)
class MoELayer:
    """One MoE block.

    Attributes:
        index: decoder layer
        name: of the block among the model's modules
        block: the module that holds experts and router
        experts: the module of all E experts
        router: the module whose weight has E rows
        router_tensors: (module, tensor name) of everything outside the experts with E entries on its expert
            axis
    """

    index: int
    name: str
    block: nn.Module
    experts: nn.Module
    router: nn.Module
    router_tensors: tuple[tuple[nn.Module, str], ...]

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """The experts' parameters [E, …], by their names in the experts module."""
        return {
            name: parameter
            for name, parameter in self.experts.named_parameters()
            if SHARED_NORM not in name.split(".")
        }

    @property
    def counters(self) -> list[tuple[nn.Module, str]]:
        """(module, attribute) of the integers outside the experts that hold E."""
        routing_modules = (module for module, _ in self.router_tensors)
        modules = {id(module): module for module in (self.block, *routing_modules)}
        counters = []
        for module in modules.values():
            keys = [key for key in COUNT_KEYS if isinstance(vars(module).get(key), int)]
            counters += [(module, key) for key in keys]
        return counters


@dataclass(frozen=True)
class Anatomy:
    """A network and its L MoE layers.

    Attributes:
        model: the transformers model
        layers: its MoE layers, in the order of the decoder [L]
        shape: L, E, k and router groups; where a pruned model's layers differ, E is the largest count
        weights: where the weights of its decoder layers come from
        team: the processes that have this model
        room: what a sweep over the layers may take while states wait
    """

    model: PreTrainedModel
    layers: tuple[MoELayer, ...]
    shape: Shape
    weights: LayerWeights
    team: Team = field(default_factory=Alone)
    room: Room = UNBOUNDED

    @property
    def device(self) -> torch.device:
        """Where the first weights are, those of the embeddings, and token ids have to be."""
        return next(parameter.device for parameter in self.model.parameters() if not parameter.is_meta)

    def device_of(self, row: int) -> torch.device:
        """Where the weights of a MoE layer are, or will be."""
        weight: Any = self.layers[row].router.weight
        return self.device if weight.is_meta else torch.device(weight.device)


def dissect(model: PreTrainedModel, pruned: bool = False, weights: LayerWeights | None = None) -> Anatomy:
    """Find the MoE layers.

    From here on the model's forwards return logits and nothing else (experts/plain_outputs.py).

    Args:
        model: a transformers model
        pruned: layers may hold different numbers of experts
        weights: where the weights of its decoder layers come from; None = they are in memory

    Raises:
        ExciseError: the model is dense, its experts bypass the interface, or its routing is not supported.
    """
    set_plain_outputs(model)
    config = model.config.get_text_config()
    modules = dict(model.named_modules())
    names = [name for name, module in modules.items() if _is_experts(module) and not in_tower(name)]
    layers = tuple(_moe_layer(name, modules) for name in names)
    if not layers:
        raise ExciseError(_why_none(config))
    _check_one_block_each(layers, config)
    counts = {layer.index: _expert_count(layer.experts) for layer in layers}
    if len(set(counts.values())) > 1 and not pruned:
        raise ExciseError(
            f"the MoE layers have different numbers of experts ({counts}): "
            "prune the original model, not a pruned one"
        )
    groups, top_groups = router_groups(config.to_dict())
    shape = Shape(tuple(counts), max(counts.values()), _top_k(config, layers[0]), groups, top_groups)
    return Anatomy(model, layers, shape, weights or Resident(_decoder_length(layers, modules)))


def _decoder_length(layers: tuple[MoELayer, ...], modules: dict[str, nn.Module]) -> int:
    """How many decoder layers there are."""
    decoder = modules.get(list_of(layers[0].name))
    return len(decoder) if isinstance(decoder, nn.ModuleList) else layers[-1].index + 1


def expert_rows(tensor: Tensor, kept: tuple[int, ...], num_experts: int) -> Tensor:
    """The kept experts' part of a tensor, as a tensor of its own.

    Args:
        tensor: has an expert axis of length `num_experts`: [E, …] or [1, E, …]
        kept: sorted ids of n experts
        num_experts: E

    Returns:
        The tensor with n entries on that axis.
    """
    axis = expert_axis(tensor.shape, num_experts)
    assert axis is not None, "found by structure"
    return tensor.detach().index_select(axis, torch.tensor(kept, device=tensor.device))


def _is_experts(module: nn.Module) -> bool:
    """Whether a module carries the marks of the experts interface."""
    return hasattr(module, "_is_expert_parallel") and hasattr(type(module).forward, "__wrapped__")


def _expert_count(experts: nn.Module) -> int:
    return int(next(experts.parameters()).shape[0])


def _check_one_block_each(layers: tuple[MoELayer, ...], config: Any) -> None:
    for first, second in combinations(layers, 2):
        if first.index == second.index:
            raise ExciseError(
                f"{config.model_type}: two MoE blocks in one decoder layer ({first.name}, {second.name}); "
                "this layout is not supported"
            )


def _top_k(config: Any, layer: MoELayer) -> int:
    for owner in (layer.router, layer.block, config):
        for key in ("top_k", *TOP_K_KEYS):
            value = getattr(owner, key, None)
            if isinstance(value, int):
                return value
    raise ExciseError(
        f"{layer.name}: cannot tell how many experts are active per token (no top_k in router or config)"
    )


def _moe_layer(name: str, modules: dict[str, nn.Module]) -> MoELayer:
    """The MoE layer around the experts module of that name."""
    parent = name.rpartition(".")[0]
    experts, block = modules[name], modules[parent]
    count = _expert_count(experts)
    tensors = tuple(_router_tensors(parent, block, experts, count))
    routers = [module for module, key in tensors if key == "weight" and getattr(module, key).ndim == 2]
    if len(routers) != 1:
        reason = _why_no_router(block, experts, count, len(routers))
        raise ExciseError(f"{parent}: {reason}; this routing is not supported")
    numbers = numbers_in(parent)
    if len(numbers) != 1:
        raise ExciseError(f"{parent}: cannot tell the decoder layer from the module's name")
    layer = MoELayer(numbers[0], parent, block, experts, routers[0], tensors)
    _check_weights(name, layer, count)
    return layer


def _check_weights(name: str, layer: MoELayer, count: int) -> None:
    for key, parameter in layer.weights.items():
        if parameter.shape[:1] != (count,):
            raise ExciseError(
                f"{name}.{key} has shape {tuple(parameter.shape)}: no expert axis of {count} in front, "
                "so it cannot be cut"
            )


def _why_no_router(block: nn.Module, experts: nn.Module, count: int, routers: int) -> str:
    """Why a block has no single router. Some routers choose among shared or skipped experts as well."""
    inside = {id(parameter) for parameter in experts.parameters()}
    rows = {
        name: len(parameter)
        for name, parameter in block.named_parameters()
        if parameter.ndim == 2 and id(parameter) not in inside and "shared" not in name
    }
    with_more_rows = [name for name, length in rows.items() if count < length <= count + MOST_EXTRA]
    if routers or not with_more_rows:
        return f"found {routers} routers with {count} rows, expected one"
    nearest = min(with_more_rows, key=lambda name: rows[name])
    return (
        f"its router ({nearest}) has {rows[nearest]} rows for {count} experts, "
        "some for shared or skipped ones"
    )


def _router_tensors(
    parent: str, block: nn.Module, experts: nn.Module, count: int
) -> Iterator[tuple[nn.Module, str]]:
    """(module, tensor name) of everything in a block with `count` rows, except in experts."""
    inside = {id(module) for module in experts.modules()}
    for path, module in block.named_modules():
        if id(module) in inside or "shared" in path:
            continue
        if is_whole_layer(parent) and not ROUTERS.intersection(path.split(".")):
            continue  # attention and norms may have that many rows by chance
        for key, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            name = ".".join(part for part in (parent, path, key) if part)
            if _is_router_tensor(name, key, tensor, count):
                yield module, key


def _is_router_tensor(name: str, key: str, tensor: Tensor, count: int) -> bool:
    """Whether a tensor beside the experts has a row for each. Refuses what could only be cut wrongly."""
    if not tensor.is_floating_point() and tensor.ndim == 2:
        raise ExciseError(
            f"{name} is a table of whole numbers, as routers use that choose experts by token id; "
            "it cannot be cut"
        )
    if expert_axis(tensor.shape, count) is None:
        return False
    if key not in ROUTER_TENSORS:
        raise ExciseError(
            f"{name} has {count} rows and is not a known router tensor: refusing to prune around it"
        )
    return True


def _why_none(config: Any) -> str:
    """Why a model has no MoE layer that Excise could prune."""
    keys = [key for key in COUNT_KEYS if getattr(config, key, None)]
    if keys:
        count = f"{keys[0]} = {getattr(config, keys[0])}"
        return (
            f"{config.model_type}: a mixture of experts ({count}) outside transformers' experts interface; "
            "Excise can neither watch nor edit its routing"
        )
    return f"{config.model_type}: a dense model, without routed experts; there is nothing to prune"
