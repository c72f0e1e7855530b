"""Criteria that choose a set by sums over pairs of experts: `hope` and `gram` (docs/methods.md 1.8)."""

from dataclasses import replace

import numpy as np

from criteria.budget import Budget
from criteria.experiment_context import ExperimentContext
from criteria.quadratic_search import cheapest_set
from criteria.removal_room import Room
from criteria.selection import check_protected
from criteria.statistics import Statistics
from experts.arrays import Array
from experts.errors import ExciseError
from experts.notes import tell


def hope(context: ExperimentContext, mean: str, units: str) -> dict[str, Array]:
    """Choose what costs least by the norms of experts that serve the same token.

    hope: min pᵀFp, F_ij = mean of g_i ‖f_i‖ · g_j ‖f_j‖ over the tokens routed to both, 0 where none are.
    Costs next to nothing beside the observing pass. Source: HOPE, https://arxiv.org/abs/2609.18916

    Args:
        context: statistics with sums over pairs, and the budget
        mean: both = over the tokens routed to both experts (as published); all = over all tokens
        units: see `in_units`

    Returns:
        `score` [L, E]: place in the order of removal; kept experts come last.
        `objective` [n, 2]: pᵀFp of the greedy set and after swaps, layer by layer or (scope global) in one.
    """
    sums = _sums(context.statistics, "pair_norms")
    together = np.maximum(context.statistics.together, 1)  # a sum without tokens is 0
    pairs = sums / (together if mean == "both" else context.statistics.tokens.sum())
    return search(in_units(pairs, units), context, "hope")


def gram(context: ExperimentContext, units: str) -> dict[str, Array]:
    """Choose what changes the routed output least, outputs that cancel or add up included.

    gram: min pᵀGp, G_ij = mean of g_i g_j ⟨f_i, f_j⟩ over all tokens. pᵀGp is the mean squared change of the
    routed output when P is removed in mode zero, exactly. Costs next to nothing beside the observing pass.

    Args:
        context: statistics with sums over pairs, and the budget
        units: see `in_units`

    Returns:
        As `hope`.
    """
    sums = _sums(context.statistics, "pair_outputs")
    return search(in_units(sums / context.statistics.tokens.sum(), units), context, "gram")


def _sums(statistics: Statistics, name: str) -> Array:
    sums: Array = getattr(statistics, name)
    if not sums.size:
        raise ExciseError("these statistics have no sums over pairs of experts; observe with pairs=True")
    return sums


def in_units(pairs: Array, units: str) -> Array:
    """Return the costs of layers [L, E, E] in a unit in which they are added up (scope global).

    stream: squared units of the residual stream, which all layers write to. relative: divided by the cost of
    all experts of the layer; for `gram` that is the mean squared routed output.
    """
    if units == "stream":
        return pairs
    whole = pairs.sum(axis=(1, 2), keepdims=True)
    parts: Array = np.divide(pairs, whole, out=np.zeros_like(pairs), where=whole > 0)
    return parts


def search(pairs: Array, context: ExperimentContext, name: str) -> dict[str, Array]:
    """Search for the cheapest set, layer by layer in scope layer, over all of them at once in scope global.

    Args:
        pairs: F of every layer [L, E, E]
        context: model and budget
        name: of the criterion, for messages

    Returns:
        `score` and `objective`; see `hope`.
    """
    room = room_of(context)
    if room.moves:
        num_layers, num_experts, _ = pairs.shape
        flat = np.zeros((num_layers, num_experts, num_layers, num_experts))
        for row in range(num_layers):
            flat[row, :, row] = pairs[row]
        rooms, blocks = [room], [flat.reshape(num_layers * num_experts, -1)]
    else:
        rooms, blocks = [_one_layer(room, row) for row in range(len(pairs))], list(pairs)
    found = [cheapest_set(block, where, name) for block, where in zip(blocks, rooms, strict=True)]
    objective = np.array([[one.greedy, one.swapped] for one in found])
    tell_objective(name, objective, f"{sum(one.swaps for one in found)} swaps")
    return {"score": np.concatenate([one.score for one in found]), "objective": objective}


def room_of(context: ExperimentContext) -> Room:
    """Return what may be removed.

    Raises:
        ExciseError: the protected experts do not fit into the budget.
    """
    check_protected(context.protected, context.budget, context.shape)
    return Room(context.shape, context.budget, context.protected)


def tell_objective(name: str, objective: Array, after: str) -> None:
    """Say what the search came to."""
    greedy, swapped = objective.sum(axis=0)
    tell(f"{name}: it minimises {greedy:.6g} with the greedy set, {swapped:.6g} after {after}")


def _one_layer(room: Room, row: int) -> Room:
    """The room of one layer, in scope layer."""
    shape = replace(room.shape, layers=room.shape.layers[row : row + 1])
    kept = room.budget.of_layers(room.shape.num_layers)[row]
    budget = Budget(kept, "layer", room.budget.floor, room.budget.text, room.budget.multiple, (kept,))
    return Room(shape, budget, room.protected[row : row + 1])
