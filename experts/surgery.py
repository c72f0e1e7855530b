"""Cut a model in memory: for good what a restriction does for a while."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from experts.anatomy import Anatomy, MoELayer, dissect, expert_rows
from experts.disk.configuration import COUNT_KEYS
from experts.plan import Plan


@torch.no_grad()
def cut(anatomy: Anatomy, plan: Plan) -> Anatomy | None:
    """Remove the experts that `plan` does not keep, in place. Ids are renumbered 0..n−1 in order.

    Returns:
        The new anatomy, or None where layers now differ in size, which no stock configuration describes.

    Raises:
        ExciseError: the plan was made for another model.
    """
    plan.check_model(anatomy.shape.layers, anatomy.shape.num_experts)
    for layer in anatomy.layers:
        cut_layer(layer, plan.kept[layer.index], anatomy.shape.num_experts)
    if not plan.uniform:
        return None
    set_count(anatomy.model.config.get_text_config(), len(next(iter(plan.kept.values()))))
    return dissect(anatomy.model)


@torch.no_grad()
def cut_layer(layer: MoELayer, kept: tuple[int, ...], num_experts: int) -> None:
    """Slice the experts, the router and the counters of one MoE block.

    Args:
        layer: the MoE block
        kept: sorted ids of the kept experts
        num_experts: E, before the cut
    """
    for name, parameter in layer.weights.items():
        owner, _, key = name.rpartition(".")
        _replace(layer.experts.get_submodule(owner), key, expert_rows(parameter, kept, num_experts))
    for module, key in layer.router_tensors:
        _replace(module, key, expert_rows(getattr(module, key), kept, num_experts))
    of_experts = [(layer.experts, key) for key in COUNT_KEYS if hasattr(layer.experts, key)]
    for module, key in (*layer.counters, *of_experts):
        setattr(module, key, len(kept))


def set_count(config: PreTrainedConfig, count: int) -> None:
    """Write the new E under whichever key the configuration has."""
    for key in COUNT_KEYS:
        if getattr(config, key, None) is not None:
            setattr(config, key, count)


def _replace(module: nn.Module, key: str, value: Tensor) -> None:
    if key in module._parameters:
        module._parameters[key] = nn.Parameter(value, requires_grad=value.is_floating_point())
    else:
        module._buffers[key] = value
