"""Sums over pairs of experts that serve the same token: norms, and inner products of their outputs.

They cost k² products per token beside k experts, and are made only where a criterion of pairs is asked for.
"""

import torch
from torch import Tensor

from experts.expert_sums import add_by_expert
from experts.rows import places, take_rows
from experts.seam import ExpertOutputs

BLOCK = 1024  # tokens whose outputs are put in order at once


def add_pairs(
    norms: Tensor,
    outputs: Tensor,
    seen: ExpertOutputs,
    index: Tensor,
    weight: Tensor,
    valid: Tensor | None,
) -> None:
    """Add what pairs of experts did in one call.

    Args:
        norms: Σ_t g_i ‖f_i‖ · g_j ‖f_j‖ [E, E], changed in place
        outputs: Σ_t g_i g_j ⟨f_i, f_j⟩ [E, E], likewise
        seen: the experts' outputs
        index: expert ids [T, k]
        weight: gate weights [T, k]
        valid: False on padding [T]; None = nothing is padding
    """
    tokens, k = index.shape
    place = places(seen.pair).view(tokens, k)  # of every pair, its row of the outputs
    counted = torch.arange(tokens, device=index.device)
    if valid is not None:
        counted = counted[valid]
    for token in torch.split(counted, BLOCK):
        rows = take_rows(seen.outputs, place[token])  # [t, k, H]
        wide = rows.to(torch.promote_types(rows.dtype, torch.float32))
        gate, ids = weight[token].double(), index[token]
        inner = torch.bmm(wide, wide.transpose(1, 2)).double()
        size = gate * torch.linalg.vector_norm(wide, dim=-1).double()
        cell = (ids[:, :, None] * len(norms) + ids[:, None, :]).reshape(-1)
        add_by_expert(outputs.view(-1), cell, (gate[:, :, None] * gate[:, None, :] * inner).reshape(-1))
        add_by_expert(norms.view(-1), cell, (size[:, :, None] * size[:, None, :]).reshape(-1))
