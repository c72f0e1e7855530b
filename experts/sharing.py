"""A pruned model and its unpruned teacher in one set of weights.

The pruned experts are the first rows of the teacher's tensors.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from experts.anatomy import Anatomy, MoELayer
from experts.disk.configuration import COUNT_KEYS
from experts.errors import ExciseError
from experts.plan import Plan
from experts.routing import shrink_router
from experts.seam import Forward, intercepted
from experts.undo import Undo


@dataclass(frozen=True)
class SharedWeights:
    """Two models in one: the cut model of a plan, and inside `as_teacher` the whole one.

    Attributes:
        anatomy: the model
        undo: turns the cut model into the whole one
        places: for every MoE layer, where each expert's row now lies, L tensors [E]
    """

    anatomy: Anatomy
    undo: Undo
    places: tuple[Tensor, ...]

    @contextmanager
    def as_teacher(self) -> Iterator[None]:
        """Inside the block the model is the unpruned one, in evaluation mode.

        Adapters stay on: taking them off is the caller's business.
        """

        def run_moved(row: int, run: Forward, hidden: Tensor, index: Tensor, weight: Tensor) -> Tensor:
            return run(hidden, self.places[row].to(index.device)[index], weight)

        with self.undo.undone(), evaluating(self.anatomy.model), intercepted(self.anatomy, run_moved):
            yield


@contextmanager
def sharing(anatomy: Anatomy, plan: Plan) -> Iterator[SharedWeights]:
    """Inside the block the model is the one `cut` would leave, without a second copy of any expert.

    In every expert tensor the rows of the kept experts move to the front, in order, so that the pruned tensor
    is a view of the whole one (bit-equal to a cut one). Whoever replaces a pruned tensor inside the block
    leaves the whole one untouched. After the block the model is whole again, its rows in their old order.

    Raises:
        ExciseError: the plan was made for another model.
    """
    plan.check_model(anatomy.shape.layers, anatomy.shape.num_experts)
    num_experts = anatomy.shape.num_experts
    orders = [_kept_first(plan.kept[layer.index], num_experts) for layer in anatomy.layers]
    undo = Undo()
    permuted: list[tuple[Tensor, Tensor]] = []
    try:
        for layer, order in zip(anatomy.layers, orders, strict=True):
            kept = plan.kept[layer.index]
            _share(layer, len(kept), order, undo, permuted)
            shrink_router(layer, kept, num_experts, undo)
        if plan.uniform:
            _set_count(anatomy, next(iter(plan.counts.values())), undo)
        yield SharedWeights(anatomy, undo, tuple(torch.argsort(order) for order in orders))
    finally:
        undo.undo()
        for tensor, order in permuted:
            _permute(tensor, torch.argsort(order))


def _kept_first(kept: tuple[int, ...], num_experts: int) -> Tensor:
    """All expert ids [E], the kept ones first."""
    others = [expert for expert in range(num_experts) if expert not in kept]
    return torch.tensor([*kept, *others])


def _share(
    layer: MoELayer, count: int, order: Tensor, undo: Undo, permuted: list[tuple[Tensor, Tensor]]
) -> None:
    """Put the pruned experts of one layer in place.

    Args:
        layer: the MoE block
        count: how many experts it keeps
        order: expert ids, the kept ones first [E]
        undo: records what is replaced
        permuted: takes every tensor whose rows have another order now, with that order
    """
    for name, parameter in layer.weights.items():
        owner, _, key = name.rpartition(".")
        _permute(parameter.data, order)
        permuted.append((parameter.data, order))
        view = nn.Parameter(parameter.data[:count], requires_grad=False)
        undo.replace(layer.experts.get_submodule(owner)._parameters, key, view)
    for key in COUNT_KEYS:
        if key in vars(layer.experts):
            undo.replace(vars(layer.experts), key, count)


def _set_count(anatomy: Anatomy, count: int, undo: Undo) -> None:
    """Write the new E into the configuration, under whichever key it has."""
    config = vars(anatomy.model.config.get_text_config())
    for key in COUNT_KEYS:
        if config.get(key) is not None:
            undo.replace(config, key, count)


@torch.no_grad()
def _permute(tensor: Tensor, order: Tensor) -> None:
    """Put the rows of a tensor into this order [E], in place."""
    tensor.copy_(tensor[order.to(tensor.device)])


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside the block every module is in evaluation mode: a teacher has no dropout and no router noise."""
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


def kept_counts(anatomy: Anatomy) -> dict[int, int]:
    """Experts that every MoE layer now holds, by decoder layer.

    Raises:
        ExciseError: the router and the experts of a layer disagree.
    """
    counts = {}
    for layer in anatomy.layers:
        in_router = {_rows(getattr(module, key)) for module, key in layer.router_tensors}
        in_experts = {len(parameter) for parameter in layer.weights.values()}
        numbers = in_router | in_experts
        if len(numbers) > 1:
            raise ExciseError(
                f"{layer.name}: router and experts hold different numbers of experts ({sorted(numbers)})"
            )
        counts[layer.index] = numbers.pop()
    return counts


def _rows(tensor: Tensor) -> int:
    """Length of the expert axis: the first one, or the one behind axes of length 1."""
    return next((size for size in tensor.shape if size > 1), 1)
