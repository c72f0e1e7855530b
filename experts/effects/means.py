"""Mean output of every expert over the tokens routed to it: what Mode.MEAN puts in its place (MoNE, arXiv 2507.00390)."""

import torch
from torch import Tensor

from experts.anatomy import Anatomy
from experts.seam import Forward, intercepted, see_outputs


@torch.no_grad()
def mean_outputs(anatomy: Anatomy, tokens: Tensor, batch: int = 8) -> Tensor:
    """mean_{X_e} f_e [L, E, H] over windows [N, W], summed in float64, in the model's dtype (at least float32); 0 where no token came."""
    device, wide = tokens.device, torch.promote_types(anatomy.model.dtype, torch.float32)
    sums: dict[
        int, Tensor
    ] = {}  # H is known when the experts give something: some work in a space of their own
    counts = torch.zeros(len(anatomy.layers), anatomy.shape.num_experts, dtype=torch.float64, device=device)

    def add(layer: int, run: Forward, hidden: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        seen = see_outputs(anatomy.layers[layer].experts, run, hidden, index, weight)
        chosen = index.reshape(-1)[seen.pair]
        if layer not in sums:
            sums[layer] = torch.zeros(
                anatomy.shape.num_experts, seen.outputs.shape[1], dtype=torch.float64, device=device
            )
        sums[layer].index_add_(0, chosen, seen.outputs.double())
        counts[layer] += torch.bincount(chosen, minlength=anatomy.shape.num_experts)
        return seen.routed

    with intercepted(anatomy, add):
        for start in range(0, len(tokens), batch):
            anatomy.model.base_model(input_ids=tokens[start : start + batch], use_cache=False)
    return (torch.stack([sums[layer] for layer in range(len(sums))]) / counts.clamp(min=1)[..., None]).to(
        wide
    )
