"""Interventions: context managers that change a model for a while and leave it bit-equal to before."""

from collections.abc import Callable, Iterable, Iterator, Mapping
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
    """Inside the block the model routes only to the experts `plan` keeps.

    Its logits are those of the cut model, bit for bit: the router runs with the kept rows of its weight, bias
    and correction bias, exactly as it will after pruning, and the ids that it returns are mapped back to the
    untouched experts. No weight is copied except the router's.

    Raises:
        ExciseError: the plan was made for another model, or the model is restricted already.
    """
    plan.check_model(anatomy.shape.layers, anatomy.shape.num_experts)
    _check_unrestricted(anatomy)
    ids = [torch.tensor(plan.kept[layer.index], device=anatomy.device) for layer in anatomy.layers]

    def map_back(row: int, run: Forward, hidden: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        return run(hidden, ids[row].to(index.device)[index], weight)

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
    """Inside the block the marked experts are removed: several of a layer, and of several layers, together.

    Args:
        anatomy: the model
        removed: row among the MoE layers -> bool [E], for every token, or [T, E], token by token in the order
            in
            which they enter the experts
        mode: what removal means
        means: mean output of every expert [L, E, H], for Mode.MEAN

    Raises:
        ExciseError: the mean outputs are missing, or a router cannot choose again.
    """
    if mode is Mode.MEAN and means is None:
        raise ExciseError("mode mean needs the mean outputs of the experts")
    block_inputs: dict[int, Tensor] = {}

    def edit(row: int, run: Forward, hidden: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        if row not in removed:
            return run(hidden, index, weight)
        if mode is Mode.REROUTE:
            block_input = block_inputs.pop(row)
            gone = removed[row].to(block_input.device)
            return run(hidden, *_rerouted(anatomy, row, block_input, gone, index, weight))
        marks = removed[row].to(index.device).expand(len(hidden), -1)
        hit = marks.gather(1, index)
        routed = run(hidden, index, _weights_without(weight, hit, mode))
        if mode is Mode.MEAN and means is not None:
            routed = routed + _mean_part(index, weight * hit, means[row].to(index.device)).to(routed.dtype)
        return routed

    with ExitStack() as stack:
        if mode is Mode.REROUTE:
            for row in removed:
                stack.callback(record_input(anatomy, row, block_inputs))
        stack.enter_context(intercepted(anatomy, edit))
        yield


@contextmanager
def block_inputs(anatomy: Anatomy, rows: Iterable[int]) -> Iterator[dict[int, Tensor]]:
    """Inside the block, what enters the blocks of some MoE layers is recorded until their experts are called.

    Yields:
        row -> the block's input, T tokens of width H; whoever takes it out leaves room for the next.
    """
    inputs: dict[int, Tensor] = {}
    with ExitStack() as stack:
        for row in rows:
            stack.callback(record_input(anatomy, row, inputs))
        yield inputs


def check_untouched(anatomy: Anatomy) -> None:
    """Refuse a model that is under an intervention: what is made of it now would pass for the model's own.

    Raises:
        ExciseError: it is restricted, or its experts' calls are edited.
    """
    _check_unrestricted(anatomy)
    for layer in anatomy.layers:
        # accelerate patches modules, too, to move what enters them to their GPU.
        if "forward" in vars(layer.experts) and not hasattr(layer.experts, "_hf_hook"):
            raise ExciseError("this model is under an intervention; leave its `with` block first")


def _check_unrestricted(anatomy: Anatomy) -> None:
    for layer in anatomy.layers:
        rows = getattr(layer.router, "weight")  # noqa: B009 - typed as Module or Tensor
        if len(rows) != anatomy.shape.num_experts:
            raise ExciseError("this model is already restricted; leave the outer restriction first")


def _mean_part(index: Tensor, weight: Tensor, means: Tensor) -> Tensor:
    """What the experts' mean outputs [E, H] add to each token [T, H], by ids and weights [T, k]."""
    shares = torch.zeros(len(index), len(means), dtype=means.dtype, device=means.device)
    shares.scatter_add_(1, index, weight.to(means.dtype))
    return shares @ means


def _weights_without(weight: Tensor, hit: Tensor, mode: Mode) -> Tensor:
    """Gate weights [T, k] with those that are hit at 0.

    In Mode.RENORMALIZE the others are rescaled to the same sum, in float64.
    """
    left = weight.masked_fill(hit, 0)
    if mode is not Mode.RENORMALIZE:
        return left
    left_sum = left.double().sum(dim=-1, keepdim=True)
    rescaled = hit.any(dim=-1, keepdim=True) & (left_sum != 0)
    factor = torch.where(rescaled, weight.double().sum(dim=-1, keepdim=True) / left_sum, 1.0)
    return (left.double() * factor).to(weight.dtype)


def _rerouted(
    anatomy: Anatomy, row: int, block_input: Tensor, removed: Tensor, index: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Expert ids and gate weights [T, k] after the router has chosen again.

    Tokens from which the same experts are removed are routed together, once.

    Args:
        anatomy: the model
        row: place of the layer among the L MoE layers
        block_input: what entered its block, T tokens of width H
        removed: True at the experts that cannot be chosen, bool [E] or [T, E]
        index: ids that the router chose first [T, k]
        weight: their gate weights [T, k]
    """
    hidden = block_input.reshape(len(index), -1)
    if removed.ndim == 1:
        ids, weights = routing_without(anatomy, row, hidden, removed)
        return ids.to(index.dtype), weights.to(weight.dtype)
    index, weight = index.clone(), weight.clone()
    removals, removal_of = torch.unique(removed, dim=0, return_inverse=True)
    for number, removal in enumerate(removals):
        if removal.any():
            tokens = torch.nonzero(removal_of == number)[:, 0]
            ids, weights = routing_without(anatomy, row, hidden[tokens], removal)
            index[tokens] = ids.to(index.dtype)
            weight[tokens] = weights.to(weight.dtype)
    return index, weight


def record_input(anatomy: Anatomy, row: int, block_inputs: dict[int, Tensor]) -> Callable[[], None]:
    """Record what enters a block until its experts are called: the router has to see it again.

    Returns:
        Ends the recording.
    """
    layer = anatomy.layers[row]

    def record(_: nn.Module, args: Any, kwargs: Any) -> None:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if len(tensors) != 1:
            raise ExciseError(
                f"{layer.name}: the block takes {len(tensors)} tensors, so it cannot be routed again; "
                "use another mode than reroute"
            )
        block_inputs[row] = tensors[0]

    return layer.block.register_forward_pre_hook(record, with_kwargs=True).remove
