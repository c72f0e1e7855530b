"""A forward in which experts are removed, with slopes in what every expert's survival would change."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from experts.ablation import block_inputs
from experts.anatomy import Anatomy
from experts.routing import routing_without
from experts.seam import Forward, intercepted


@contextmanager
def masked_gates(anatomy: Anatomy, kept: Tensor, survival: Tensor) -> Iterator[None]:
    """Inside the block the router chooses among the kept experts, as after pruning; nothing else changes.

    Slopes in the survival of an expert come straight through: of a kept one, what its gate weight is
    multiplied by; of a removed one, its output with the gate weight that it had without the removal.

    Args:
        anatomy: the model
        kept: True at the kept experts [L, E]
        survival: numbers with slopes [L, E]; only their slopes count, not their values
    """
    through = survival - survival.detach()  # 0, with a slope of 1

    with block_inputs(anatomy, range(len(anatomy.layers))) as entered:

        def edit(row: int, run: Forward, hidden: Tensor, index: Tensor, weight: Tensor) -> Tensor:
            entering = entered.pop(row).reshape(len(index), -1)
            removed, own = ~kept[row].to(index.device), through[row].to(index.device)
            ids, gates = routing_without(anatomy, row, entering, removed, slopes=True)
            alive = gates * (1 + own[ids]).to(gates.dtype)
            back = weight * (own * removed)[index].to(weight.dtype)
            return run(
                hidden,
                torch.cat([ids.to(index.dtype), index], dim=1),
                torch.cat([alive.to(weight.dtype), back], dim=1),
            )

        with intercepted(anatomy, edit):
            yield
