"""The router with fewer experts to choose from: for the whole model (a plan) or for single rows of tokens (an intervention)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from experts.anatomy import Anatomy, MoELayer, expert_rows
from experts.errors import ExciseError
from experts.seam import replaced

CORRECTION = "e_score_correction_bias"


Kept = list[tuple[dict[str, Any], str, Any]]  # (table of attributes, name, value before)


class _Routed(Exception):  # noqa: N818 - not an error: the way out of a block whose experts need not run
    """Carries the routing of a block: expert ids and gate weights [T, k]."""

    def __init__(self, index: Tensor, weight: Tensor) -> None:
        self.index, self.weight = index, weight


@contextmanager
def small_router(layer: MoELayer, kept: tuple[int, ...], experts: int) -> Iterator[None]:
    """Inside the block the router has only the kept rows, as after pruning; it gives ids 0..len(kept) − 1."""
    before: Kept = []
    try:
        shrink_router(layer, kept, experts, before)
        yield
    finally:
        for table, key, value in reversed(before):
            table[key] = value


def shrink_router(layer: MoELayer, kept: tuple[int, ...], experts: int, before: Kept) -> None:
    """Leaves the router only the kept rows; what was there is added to `before`."""
    for module, key in layer.router_tensors:
        _swap(module, key, expert_rows(getattr(module, key), kept, experts), before)
    for module, key in layer.counters:
        swap_value(vars(module), key, len(kept), before)


def swap_value(table: dict[str, Any], key: str, value: Any, before: Kept) -> None:
    """Puts a value into a table of attributes; the one that was there is added to `before`."""
    before.append((table, key, table[key]))
    table[key] = value


@torch.no_grad()
def routing_without(
    anatomy: Anatomy, position: int, hidden: Tensor, removed: Tensor
) -> tuple[Tensor, Tensor]:
    """What the block of layer `position` chooses for the rows [n, H] when the experts marked in `removed` [E] cannot be chosen.

    Gives expert ids (of the whole model) and gate weights [n, k]. The model's own block runs up to the call of its experts, so groups,
    correction bias, normalisation and scaling are the model's own. Raises ExciseError where the rest cannot route.
    """
    layer, kept = anatomy.layers[position], tuple(torch.nonzero(~removed)[:, 0].tolist())
    if len(kept) < anatomy.shape.top_k:
        raise ExciseError(
            f"{layer.name}: {len(kept)} of {anatomy.shape.num_experts} experts would be left, "
            f"but every token uses top_k = {anatomy.shape.top_k}; "
            "remove fewer, or use mode zero"
        )
    if _even(anatomy, kept):
        with small_router(layer, kept, anatomy.shape.num_experts):
            index, weight = _route(layer, hidden)
        return torch.tensor(kept, device=index.device)[index], weight
    with _barred(layer, removed):
        return _route(layer, hidden)


def _route(layer: MoELayer, hidden: Tensor) -> tuple[Tensor, Tensor]:
    def stop(hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> NoReturn:  # noqa: ARG001 - names of the interface
        raise _Routed(top_k_index, top_k_weights)

    with replaced(layer.experts, stop):
        try:
            layer.block.forward(hidden[None])
        except _Routed as routed:
            return routed.index, routed.weight
    raise ExciseError(
        f"{layer.name}: the block did not call its experts, so it cannot be routed again; use another mode than reroute"
    )


def _even(anatomy: Anatomy, kept: tuple[int, ...]) -> bool:
    """Whether every router group keeps as many: a smaller router divides its rows evenly among the groups."""
    return len(set(anatomy.shape.group_counts(kept))) == 1


@contextmanager
def _barred(layer: MoELayer, removed: Tensor) -> Iterator[None]:
    """Inside the block the marked experts lose every choice, by a correction bias of −∞; the router keeps its size and its groups."""
    biases = [(module, key) for module, key in layer.router_tensors if key == CORRECTION]
    if not biases:
        raise ExciseError(
            f"{layer.name}: the router chooses among groups, and an uneven removal would shift them; "
            "remove equally many experts of every group, or use another mode than reroute"
        )
    before: Kept = []
    try:
        for module, key in biases:
            bias = getattr(module, key).detach()
            _swap(module, key, bias.masked_fill(removed.to(bias.device), -torch.inf), before)
        yield
    finally:
        for table, key, value in reversed(before):
            table[key] = value


def _swap(module: nn.Module, key: str, value: Tensor, before: Kept) -> None:
    table: dict[str, Any] = module._parameters if key in module._parameters else module._buffers
    swap_value(
        table, key, nn.Parameter(value, requires_grad=False) if table is module._parameters else value, before
    )
