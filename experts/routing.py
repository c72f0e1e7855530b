"""The router with fewer experts to choose from.

For a whole model (a plan), or for some tokens (an intervention).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import torch
from torch import Tensor, nn

from experts.anatomy import Anatomy, MoELayer, expert_rows
from experts.disk.tensors import expert_axis
from experts.errors import ExciseError
from experts.seam import replaced
from experts.undo import Undo

CORRECTION_BIAS = "e_score_correction_bias"


class _Routed(Exception):  # noqa: N818 - not an error: the way out of a block whose experts need not run
    """Carries the routing of a block: expert ids and gate weights [T, k]."""

    def __init__(self, index: Tensor, weight: Tensor) -> None:
        self.index, self.weight = index, weight


@contextmanager
def small_router(layer: MoELayer, kept: tuple[int, ...], num_experts: int) -> Iterator[None]:
    """Inside the block the router has only the kept rows, as after pruning.

    It returns ids 0..len(kept) − 1, in the order of `kept`.

    Args:
        layer: the MoE block whose router shrinks
        kept: sorted ids of the kept experts
        num_experts: E, the rows of the router now
    """
    with Undo() as undo:
        shrink_router(layer, kept, num_experts, undo)
        yield


def shrink_router(layer: MoELayer, kept: tuple[int, ...], num_experts: int, undo: Undo) -> None:
    """Leave the router only the kept rows; `undo` records what they replace."""
    for module, key in layer.router_tensors:
        _replace(module, key, expert_rows(getattr(module, key), kept, num_experts), undo)
    for module, key in layer.counters:
        undo.replace(vars(module), key, len(kept))


def routing_without(
    anatomy: Anatomy, row: int, hidden: Tensor, removed: Tensor, *, slopes: bool = False
) -> tuple[Tensor, Tensor]:
    """Route tokens once more, as if some experts of a layer could not be chosen.

    The model's own block runs up to the call of its experts, so groups, correction bias, normalisation and
    scaling are the model's own.

    Args:
        anatomy: the model
        row: place of the layer among the L MoE layers
        hidden: what enters the block [T, H]
        removed: True at the experts that cannot be chosen, bool [E]
        slopes: whether the gate weights have slopes in what enters the block

    Returns:
        Expert ids (of the whole model) and gate weights, [T, k] each.

    Raises:
        ExciseError: the experts that are left cannot route.
    """
    layer = anatomy.layers[row]
    num_experts, top_k = anatomy.shape.num_experts, anatomy.shape.top_k
    kept = tuple(torch.nonzero(~removed)[:, 0].tolist())
    if len(kept) < top_k:
        raise ExciseError(
            f"{layer.name}: {len(kept)} of {num_experts} experts would be left, "
            f"but every token uses top_k = {top_k}; remove fewer, or use mode zero"
        )
    with torch.set_grad_enabled(slopes):
        if _is_even(anatomy, kept):
            with small_router(layer, kept, num_experts):
                index, weight = _route(layer, hidden)
            return torch.tensor(kept, device=index.device)[index], weight
        with _barred(layer, removed):
            return _route(layer, hidden)


@torch.no_grad()
def routing_without_one(anatomy: Anatomy, row: int, hidden: Tensor, expert: int) -> tuple[Tensor, Tensor]:
    """Route tokens once more without one expert: `routing_without`, in less time than a router takes itself.

    Args:
        anatomy: the model
        row: place of the layer among the L MoE layers
        hidden: what enters the block [T, H]
        expert: id of the expert that cannot be chosen
    """
    layer, num_experts = anatomy.layers[row], anatomy.shape.num_experts
    if anatomy.shape.groups > 1 or num_experts <= anatomy.shape.top_k:
        removed = torch.zeros(num_experts, dtype=torch.bool, device=hidden.device)
        removed[expert] = True
        return routing_without(anatomy, row, hidden, removed)
    with Undo() as undo:
        for module, key in layer.router_tensors:
            _replace(module, key, _without(getattr(module, key), expert, num_experts), undo)
        for module, key in layer.counters:
            undo.replace(vars(module), key, num_experts - 1)
        index, weight = _route(layer, hidden)
    return index + (index >= expert), weight


def _without(tensor: Tensor, expert: int, num_experts: int) -> Tensor:
    """A tensor without one expert's part of its expert axis."""
    axis = expert_axis(tensor.shape, num_experts)
    assert axis is not None, "found by structure"
    before, after = tensor.narrow(axis, 0, expert), tensor.narrow(axis, expert + 1, num_experts - expert - 1)
    return torch.cat([before, after], dim=axis).detach()


def _route(layer: MoELayer, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Expert ids and gate weights [T, k] that the block chooses for hidden states [T, H]."""

    # The names are those of the interface.
    def stop(hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> NoReturn:  # noqa: ARG001
        raise _Routed(top_k_index, top_k_weights)

    with replaced(layer.experts, stop):
        try:
            layer.block.forward(hidden[None])
        except _Routed as routed:
            return routed.index, routed.weight
    raise ExciseError(
        f"{layer.name}: the block did not call its experts, so it cannot be routed again; "
        "use another mode than reroute"
    )


def _is_even(anatomy: Anatomy, kept: tuple[int, ...]) -> bool:
    """Whether all router groups keep equally many experts.

    A smaller router divides its rows evenly among the groups.
    """
    return len(set(anatomy.shape.group_counts(kept))) == 1


@contextmanager
def _barred(layer: MoELayer, removed: Tensor) -> Iterator[None]:
    """Inside the block the marked experts [E] lose every choice, by a correction bias of −∞.

    The router keeps its size and its groups.
    """
    biases = [(module, key) for module, key in layer.router_tensors if key == CORRECTION_BIAS]
    if not biases:
        raise ExciseError(
            f"{layer.name}: the router chooses among groups, and an uneven removal would shift them; "
            "remove equally many experts of every group, or use another mode than reroute"
        )
    with Undo() as undo:
        for module, key in biases:
            bias = getattr(module, key).detach()
            _replace(module, key, bias.masked_fill(removed.to(bias.device), -torch.inf), undo)
        yield


def _replace(module: nn.Module, key: str, tensor: Tensor, undo: Undo) -> None:
    """Put a tensor in the place of a parameter or buffer, as what it was."""
    if key in module._parameters:
        undo.replace(module._parameters, key, nn.Parameter(tensor, requires_grad=False))
    else:
        undo.replace(module._buffers, key, tensor)
