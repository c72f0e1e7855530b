"""Every token routed again without each of its active experts, and the experts that enter."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from experts.anatomy import Anatomy
from experts.replacement_rule import agrees, by_rule
from experts.routing import routing_without_one
from experts.rows import places, take_rows
from experts.seam import Forward, see_outputs

FEWEST = 4  # active experts from which on a rule saves routing


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

    The model's own block decides (`experts.routing.routing_without_one`); it takes tokens that lose the same
    expert together. From k = 4 on, without router groups, it decides for two of the k experts of a token. The
    others follow from the first by rule (experts/replacement_rule.py), where the second proves the rule for
    this token; all other tokens are routed k times.

    Args:
        anatomy: the model
        row: place of the layer among the L MoE layers
        hidden: what enters the block [T, H]
        index: expert ids [T, k]
        weight: gate weights [T, k]

    Raises:
        ExciseError: the router cannot choose again.
    """
    if anatomy.shape.groups > 1 or index.shape[1] < FEWEST:
        return _one_by_one(anatomy, row, hidden, index, weight)
    slots = weight.topk(2, dim=1).indices
    first, second = slots.unbind(dim=1)
    every = torch.arange(len(index), device=index.device)
    token = every.repeat_interleave(2)
    expert = index.gather(1, slots).reshape(-1)
    routed = _routed_without(anatomy, row, hidden, expert, token, weight, index.shape[1])
    ids, gates = by_rule(index, weight, first, second, routed[0][::2], routed[1][::2])
    proven = agrees(ids[every, second], gates[every, second], routed[0][1::2], routed[1][1::2])
    found = Rerouted(ids, gates.to(torch.promote_types(weight.dtype, torch.float32)))
    if not proven.all():
        left = ~proven
        rest = _one_by_one(anatomy, row, hidden[left], index[left], weight[left])
        found.index[left], found.weight[left] = rest.index, rest.weight.to(found.weight.dtype)
    return found


def _one_by_one(anatomy: Anatomy, row: int, hidden: Tensor, index: Tensor, weight: Tensor) -> Rerouted:
    """Every token routed k times by the block."""
    k = index.shape[1]
    token = torch.arange(len(index), device=index.device).repeat_interleave(k)
    ids, gates = _routed_without(anatomy, row, hidden, index.reshape(-1), token, weight, k)
    return Rerouted(ids.view(*index.shape, k), gates.view(*index.shape, k))


def _routed_without(
    anatomy: Anatomy, row: int, hidden: Tensor, expert: Tensor, token: Tensor, weight: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """Ids and gate weights [P, k] of P pairs of a token [P] and the expert [P] that it cannot choose."""
    counts = torch.bincount(expert, minlength=anatomy.shape.num_experts).tolist()
    order = torch.argsort(expert, stable=True)
    ids, gates = expert.new_empty(len(expert), k), weight.new_empty(len(expert), k)
    of_expert = zip(*(torch.split(pairs, counts) for pairs in (token[order], ids, gates)), strict=True)
    for gone, (tokens, own_ids, own_gates) in enumerate(of_expert):
        if len(tokens):
            found, given = routing_without_one(anatomy, row, take_rows(hidden, tokens), gone)
            own_ids.copy_(found)
            own_gates.copy_(given)
    place = places(order)
    return take_rows(ids, place), take_rows(gates, place)


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
    ones = torch.ones(len(token), 1, dtype=hidden.dtype, device=index.device)
    seen = see_outputs(experts, run, take_rows(hidden, token), expert[:, None].to(index.dtype), ones)
    return Entering(token, expert, take_rows(seen.outputs, places(seen.pair)))
