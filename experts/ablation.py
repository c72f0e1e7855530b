"""Interventions: context managers that change a model for a while and leave it bit-equal to before."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from experts.anatomy import Anatomy
from experts.errors import ExciseError
from experts.modes import Mode
from experts.plan import Plan
from experts.routing import routing_without, small_router
from experts.seam import Forward, intercepted


@contextmanager
def restricted(anatomy: Anatomy, plan: Plan) -> Iterator[None]:
    """Inside the block the model routes only to the experts `plan` keeps: the logits of the cut model, bit for bit.

    The router runs with the kept rows of its weight, bias and correction bias, exactly as it will after pruning; the ids it
    returns are mapped back to the untouched experts. No weight is copied except the router's.
    """
    plan.check_model(anatomy.shape.layers, anatomy.shape.num_experts)
    if any(len(getattr(layer.router, "weight")) != anatomy.shape.num_experts for layer in anatomy.layers):  # noqa: B009 - typed as Module or Tensor
        raise ExciseError("this model is already restricted; leave the outer restriction first")
    device = anatomy.device
    ids = [torch.tensor(plan.kept[layer.index], device=device) for layer in anatomy.layers]

    def map_back(layer: int, run: Forward, hidden: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        return run(hidden, ids[layer].to(index.device)[index], weight)

    with ExitStack() as stack:
        for layer in anatomy.layers:
            stack.enter_context(small_router(layer, plan.kept[layer.index], anatomy.shape.num_experts))
        stack.enter_context(intercepted(anatomy, map_back))
        yield


def marked(anatomy: Anatomy, *experts: int) -> Tensor:
    """bool [E], True at these experts, on the model's device."""
    marks = torch.zeros(anatomy.shape.num_experts, dtype=torch.bool, device=anatomy.device)
    marks[list(experts)] = True
    return marks


@contextmanager
def ablated(
    anatomy: Anatomy, removed: Mapping[int, Tensor], mode: Mode, means: Tensor | None = None
) -> Iterator[None]:
    """Inside the block the marked experts are removed.

    removed: layer position -> bool [E], for every token, or [T, E], token by token in the order in which they enter the experts.
    means: mean output of every expert [L, E, H], for Mode.MEAN. Experts of several layers, and several of a layer, go together.
    """
    if mode is Mode.MEAN and means is None:
        raise ExciseError("mode mean needs the mean outputs of the experts")
    entered: dict[int, Tensor] = {}

    def edit(layer: int, run: Forward, hidden: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        if layer not in removed:
            return run(hidden, index, weight)
        if mode is Mode.REROUTE:
            return run(hidden, *_rerouted(anatomy, layer, entered.pop(layer), removed[layer], index, weight))
        gone = removed[layer].expand(len(hidden), -1)
        hit = gone.gather(1, index)
        routed = run(hidden, index, _without(weight, hit, mode))
        if mode is Mode.MEAN and means is not None:
            share = torch.zeros(gone.shape, dtype=means.dtype, device=means.device).scatter_add_(
                1, index, (weight * hit).to(means.dtype)
            )
            routed = routed + (share @ means[layer]).to(routed.dtype)
        return routed

    with ExitStack() as stack:
        if mode is Mode.REROUTE:
            for position in removed:
                stack.callback(_note_input(anatomy, position, entered))
        stack.enter_context(intercepted(anatomy, edit))
        yield


def _without(weight: Tensor, hit: Tensor, mode: Mode) -> Tensor:
    """Gate weights [T, k] with those that are hit at 0, and the others rescaled to the same sum in Mode.RENORMALIZE."""
    kept = weight.masked_fill(hit, 0)
    if mode is not Mode.RENORMALIZE:
        return kept
    left = kept.double().sum(dim=-1, keepdim=True)
    factor = torch.where(
        hit.any(dim=-1, keepdim=True) & (left != 0), weight.double().sum(dim=-1, keepdim=True) / left, 1.0
    )
    return (kept.double() * factor).to(weight.dtype)


def _rerouted(
    anatomy: Anatomy, position: int, block_input: Tensor, gone: Tensor, index: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Expert ids and gate weights [T, k] after the router has chosen again; every distinct removal of the rows is routed once."""
    flat = block_input.reshape(len(index), -1)
    if gone.ndim == 1:
        ids, weights = routing_without(anatomy, position, flat, gone)
        return ids.to(index.dtype), weights.to(weight.dtype)
    index, weight = index.clone(), weight.clone()
    sets, which = torch.unique(gone, dim=0, return_inverse=True)
    for number, removed in enumerate(sets):
        if removed.any():
            rows = torch.nonzero(which == number)[:, 0]
            ids, weights = routing_without(anatomy, position, flat[rows], removed)
            index[rows], weight[rows] = ids.to(index.dtype), weights.to(weight.dtype)
    return index, weight


def _note_input(anatomy: Anatomy, position: int, entered: dict[int, Tensor]) -> Callable[[], None]:
    """Keeps what enters a block until its experts are called: the router has to see it again."""
    layer = anatomy.layers[position]

    def note(_: nn.Module, args: Any, kwargs: Any) -> None:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if len(tensors) != 1:
            raise ExciseError(
                f"{layer.name}: the block takes {len(tensors)} tensors, so it cannot be routed again; use another mode than reroute"
            )
        entered[position] = tensors[0]

    return layer.block.register_forward_pre_hook(note, with_kwargs=True).remove
