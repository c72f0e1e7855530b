"""Norms of weights, for criteria that need no text."""

import numpy as np
import torch
from torch import Tensor

from experts.anatomy import MoELayer
from experts.arrays import Array
from experts.errors import ExciseError


@torch.no_grad()
def layer_norms(layer: MoELayer) -> dict[str, Array]:
    """Return norms of the router rows and of the expert matrices of a layer; biases are left out.

    Returns:
        `router_norm`, `weight_l1`, `weight_l2` and `weight_count` of `Statistics`, [E] each.

    Raises:
        ExciseError: the experts are quantised in memory.
    """
    matrices = _expert_matrices(layer)
    sums = torch.stack([_sums(matrix) for matrix in matrices]).sum(dim=0).T.cpu().numpy()
    elements = sum(matrix[0].numel() for matrix in matrices)
    router = layer.router.weight
    assert isinstance(router, Tensor)
    return {
        "router_norm": torch.linalg.vector_norm(router, dim=1, dtype=torch.float64).cpu().numpy(),
        "weight_l1": sums[0],
        "weight_l2": sums[1],
        "weight_count": np.full(len(sums[0]), float(elements)),
    }


def _expert_matrices(layer: MoELayer) -> list[Tensor]:
    """The weights of the experts, [E, rows, columns] each."""
    matrices: list[Tensor] = [parameter for parameter in layer.weights.values() if parameter.ndim == 3]
    if any(not matrix.is_floating_point() for matrix in matrices):
        quantised = f"{layer.name}: the experts are quantised in memory"
        raise ExciseError(f"{quantised}; calibrate with dtype: bfloat16 or float32")
    return matrices


def _sums(matrices: Tensor) -> Tensor:
    """Σ|w| and Σw² of every expert [E, 2], in float64 over sums of rows in float32.

    float64 throughout takes 8 times as long. Both are taken while an expert's matrix is in the processor's
    cache, and Σ|w| as a plain sum, in a third of the time of the norm of order 1 (CPU).
    """
    precision = torch.promote_types(matrices.dtype, torch.float32)
    found = []
    for matrix in matrices:
        wide = matrix.to(precision)
        sizes, norms = wide.abs().sum(dim=-1), torch.linalg.vector_norm(wide, dim=-1)
        found.append(torch.stack([sizes.double().sum(), norms.double().square().sum()]))
    return torch.stack(found)
