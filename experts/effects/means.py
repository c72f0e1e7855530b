"""Mean output of every expert over the tokens routed to it: what Mode.MEAN puts in its place.

Source: MoNE, https://arxiv.org/abs/2507.00390
"""

import torch
from torch import Tensor

from experts.anatomy import Anatomy
from experts.seam import Forward, intercepted, see_outputs


@torch.no_grad()
def mean_outputs(anatomy: Anatomy, tokens: Tensor, batch: int = 8) -> Tensor:
    """Average f_e(x) over the tokens x that are routed to expert e.

    Args:
        anatomy: the model
        tokens: windows [N, W]
        batch: windows of one forward

    Returns:
        Means [L, E, H], summed in float64, in the model's dtype (at least float32); 0 where no token came. H
        is the width in which the experts work: some have a space of their own.
    """
    num_experts = anatomy.shape.num_experts
    sums: dict[int, Tensor] = {}  # made at the first call of a layer, when the width is known
    counts = torch.zeros(len(anatomy.layers), num_experts, dtype=torch.float64, device=tokens.device)

    def add(row: int, run: Forward, hidden: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        seen = see_outputs(anatomy.layers[row].experts, run, hidden, index, weight)
        experts = index.reshape(-1)[seen.pair]
        if row not in sums:
            width = seen.outputs.shape[1]
            sums[row] = torch.zeros(num_experts, width, dtype=torch.float64, device=tokens.device)
        sums[row].index_add_(0, experts, seen.outputs.double())
        counts[row] += torch.bincount(experts, minlength=num_experts)
        return seen.routed

    with intercepted(anatomy, add):
        for start in range(0, len(tokens), batch):
            anatomy.model.base_model(input_ids=tokens[start : start + batch], use_cache=False)
    means = torch.stack([sums[row] for row in range(len(sums))]) / counts.clamp(min=1)[..., None]
    return means.to(torch.promote_types(anatomy.model.dtype, torch.float32))
