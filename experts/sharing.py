"""A pruned model and its unpruned teacher in one set of weights: the pruned experts are the first rows of the teacher's tensors."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from experts.anatomy import Anatomy, MoELayer
from experts.disk.configuration import COUNT_KEYS
from experts.errors import ExciseError
from experts.plan import Plan
from experts.routing import Kept, shrink_router, swap_value
from experts.seam import Forward, intercepted


@dataclass(frozen=True)
class SharedWeights:
    """Two models in one: as it stands the cut model of a plan, inside `as_teacher` the whole one.

    slots: (table of attributes, name, the whole model's value) of everything that differs; places: of every MoE layer, where each expert's
    row now lies [E].
    """

    anatomy: Anatomy
    slots: Kept
    places: tuple[Tensor, ...]

    @contextmanager
    def as_teacher(self) -> Iterator[None]:
        """Inside the block the model is the unpruned one, in evaluation mode. Adapters are the caller's business."""

        def moved(layer: int, run: Forward, hidden: Tensor, index: Tensor, weight: Tensor) -> Tensor:
            return run(hidden, self.places[layer].to(index.device)[index], weight)

        pruned = [(table, key, table[key]) for table, key, _ in self.slots]
        try:
            _fill(self.slots)
            with evaluating(self.anatomy.model), intercepted(self.anatomy, moved):
                yield
        finally:
            _fill(pruned)


@contextmanager
def sharing(anatomy: Anatomy, plan: Plan) -> Iterator[SharedWeights]:
    """Inside the block the model is the one `cut` would leave, without a second copy of any expert; afterwards it is whole again.

    In every expert tensor the rows of the kept experts move to the front, in order, so that the pruned tensor is a view of the whole one
    (bit-equal to a cut one). Whoever replaces a pruned tensor inside the block leaves the whole one untouched.
    """
    plan.check_model(anatomy.shape.layers, anatomy.shape.num_experts)
    orders = [_order(plan.kept[layer.index], anatomy.shape.num_experts) for layer in anatomy.layers]
    slots: Kept = []
    moved: list[tuple[Tensor, Tensor]] = []
    try:
        for layer, order in zip(anatomy.layers, orders, strict=True):
            _share(layer, plan.kept[layer.index], order, slots, moved)
            shrink_router(layer, plan.kept[layer.index], anatomy.shape.num_experts, slots)
        if plan.uniform:
            config = vars(anatomy.model.config.get_text_config())
            for key in COUNT_KEYS:
                if config.get(key) is not None:
                    swap_value(config, key, len(next(iter(plan.kept.values()))), slots)
        yield SharedWeights(anatomy, slots, tuple(torch.argsort(order) for order in orders))
    finally:
        _fill(slots)
        for tensor, order in moved:
            _permute(tensor, torch.argsort(order))


def _order(kept: tuple[int, ...], experts: int) -> Tensor:
    """Expert ids, the kept ones first."""
    return torch.tensor([*kept, *(expert for expert in range(experts) if expert not in kept)])


def _share(
    layer: MoELayer, kept: tuple[int, ...], order: Tensor, slots: Kept, moved: list[tuple[Tensor, Tensor]]
) -> None:
    """Puts the pruned experts of one layer in place. moved: tensors whose rows have another order now."""
    for name, parameter in layer.weights.items():
        owner, _, key = name.rpartition(".")
        _permute(parameter.data, order)
        moved.append((parameter.data, order))
        view = nn.Parameter(parameter.data[: len(kept)], requires_grad=False)
        swap_value(layer.experts.get_submodule(owner)._parameters, key, view, slots)
    for key in COUNT_KEYS:
        if key in vars(layer.experts):
            swap_value(vars(layer.experts), key, len(kept), slots)


def _fill(values: Kept) -> None:
    for table, key, value in reversed(values):  # a slot that was filled twice ends with its first value
        table[key] = value


@torch.no_grad()
def _permute(tensor: Tensor, order: Tensor) -> None:
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
    """Experts that every MoE layer now holds, by decoder layer; router and experts must agree."""
    found = {}
    for layer in anatomy.layers:
        rows = {
            next((size for size in getattr(module, key).shape if size > 1), 1)
            for module, key in layer.router_tensors
        }
        counts = rows | {len(parameter) for parameter in layer.weights.values()}
        if len(counts) > 1:
            raise ExciseError(
                f"{layer.name}: router and experts hold different numbers of experts ({sorted(counts)})"
            )
        found[layer.index] = counts.pop()
    return found
