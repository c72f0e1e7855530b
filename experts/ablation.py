"""Interventions: context managers that change a model for a while and leave it bit-equal to before."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from experts.anatomy import Anatomy, MoELayer
from experts.errors import ExciseError
from experts.plan import Plan
from experts.seam import Forward, intercepted


@contextmanager
def restricted(anatomy: Anatomy, plan: Plan) -> Iterator[None]:
    """Inside the block the model routes only to the experts `plan` keeps: the logits of the cut model, bit for bit.

    The router runs with the kept rows of its weight, bias and correction bias, exactly as it will after pruning; the ids it
    returns are mapped back to the untouched experts. No weight is copied except the router's.
    """
    plan.check_model(anatomy.indices, anatomy.experts)
    if any(len(getattr(layer.router, "weight")) != anatomy.experts for layer in anatomy.layers):  # noqa: B009 - typed as Module or Tensor
        raise ExciseError("this model is already restricted; leave the outer restriction first")
    device = next(anatomy.model.parameters()).device
    ids = [torch.tensor(plan.kept[layer.index], device=device) for layer in anatomy.layers]

    def map_back(layer: int, run: Forward, hidden: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        return run(hidden, ids[layer].to(index.device)[index], weight)

    with ExitStack() as stack:
        for layer in anatomy.layers:
            stack.enter_context(_small_router(layer, plan.kept[layer.index]))
        stack.enter_context(intercepted(anatomy, map_back))
        yield


@contextmanager
def _small_router(layer: MoELayer, kept: tuple[int, ...]) -> Iterator[None]:
    before: list[tuple[dict[str, Any], str, Any]] = []

    def swap(table: dict[str, Any], key: str, value: Any) -> None:
        before.append((table, key, table[key]))
        table[key] = value

    try:
        for module, key in layer.router_tensors:
            table = module._parameters if key in module._parameters else module._buffers
            rows = getattr(module, key).detach()[torch.tensor(kept, device=getattr(module, key).device)]
            swap(table, key, nn.Parameter(rows, requires_grad=False) if table is module._parameters else rows)
        for module, key in layer.counters:
            swap(vars(module), key, len(kept))
        yield
    finally:
        for table, key, value in reversed(before):
            table[key] = value
