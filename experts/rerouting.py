"""Every token routed again without each of its active experts, and the experts that enter."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from experts.anatomy import Anatomy
from experts.routing import routing_without
from experts.seam import Forward, see_outputs


@dataclass(frozen=True)
class Rerouted:
    """What the router makes of T tokens, once without each of their k experts.

    Attributes:
        index: expert ids without the i-th active expert [T, k, k]: token, i, slot
        weight: their gate weights [T, k, k]
    """

    index: Tensor
    weight: Tensor


@dataclass(frozen=True)
class Entering:
    """P pairs of a token and an expert that is not active there and enters when an active one is removed.

    Attributes:
        token: in rising order [P]
        expert: ids [P]
        outputs: f_e(x_t) before weighting [P, H]
    """

    token: Tensor
    expert: Tensor
    outputs: Tensor


@torch.no_grad()
def rerouted_without_each(
    anatomy: Anatomy, row: int, hidden: Tensor, index: Tensor, weight: Tensor
) -> Rerouted:
    """Route every token k times, each time without one of its experts.

    The model's own block decides, as in `experts.routing.routing_without`; tokens that lose the same expert
    are routed together. Costs k times the router's product.

    Args:
        anatomy: the model
        row: place of the layer among the L MoE layers
        hidden: what enters the block [T, H]
        index: expert ids [T, k]
        weight: gate weights [T, k]

    Raises:
        ExciseError: the router cannot choose again.
    """
    k, num_experts = index.shape[1], anatomy.shape.num_experts
    expert = index.reshape(-1)
    counts = torch.bincount(expert, minlength=num_experts).tolist()
    pairs_of = torch.split(torch.argsort(expert, stable=True), counts)
    ids, gates = index.new_empty(len(expert), k), weight.new_empty(len(expert), k)
    removed = torch.zeros(num_experts, dtype=torch.bool, device=index.device)
    for gone, pairs in enumerate(pairs_of):
        if len(pairs):
            removed.zero_()[gone] = True
            found, given = routing_without(anatomy, row, hidden[pairs // k], removed)
            ids[pairs], gates[pairs] = found.to(ids.dtype), given.to(gates.dtype)
    return Rerouted(ids.view(*index.shape, k), gates.view(*index.shape, k))


@torch.no_grad()
def entering(
    experts: nn.Module, run: Forward, hidden: Tensor, index: Tensor, rerouted: Rerouted, num_experts: int
) -> Entering:
    """Run the experts that enter, each once per token: one per token without router groups.

    Args:
        experts: the experts module
        run: its forward, or an outer handler's
        hidden: what enters the experts [T, H]
        index: the active experts' ids [T, k]
        rerouted: of the same tokens
        num_experts: E
    """
    marks = torch.zeros(len(index), num_experts, dtype=torch.bool, device=index.device)
    marks.scatter_(1, rerouted.index.flatten(1), True).scatter_(1, index, False)
    token, expert = marks.nonzero(as_tuple=True)
    if not len(token):
        return Entering(token, expert, hidden.new_empty(0, hidden.shape[1]))
    ones = torch.ones(len(token), 1, dtype=rerouted.weight.dtype, device=index.device)
    seen = see_outputs(experts, run, hidden[token], expert[:, None].to(index.dtype), ones)
    outputs = torch.empty_like(seen.outputs)
    outputs[seen.pair] = seen.outputs
    return Entering(token, expert, outputs)
