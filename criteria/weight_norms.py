"""Norms of weights, for criteria that need no text."""

from collections.abc import Callable, Sequence

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
    router = layer.router.weight
    assert isinstance(router, Tensor)
    return {
        "router_norm": torch.linalg.vector_norm(router, dim=1, dtype=torch.float64).cpu().numpy(),
        "weight_l1": _per_expert(matrices, _sum_of_sizes),
        "weight_l2": _per_expert(matrices, _sum_of_squares),
        "weight_count": _per_expert(matrices, _elements),
    }


def _expert_matrices(layer: MoELayer) -> list[Tensor]:
    """The weights of the experts, [E, rows, columns] each."""
    matrices: list[Tensor] = [parameter for parameter in layer.weights.values() if parameter.ndim == 3]
    if any(not matrix.is_floating_point() for matrix in matrices):
        quantised = f"{layer.name}: the experts are quantised in memory"
        raise ExciseError(f"{quantised}; calibrate with dtype: bfloat16 or float32")
    return matrices


def _per_expert(matrices: Sequence[Tensor], measure: Callable[[Tensor], Tensor]) -> Array:
    """The sum over an expert's matrices [E]; the device is asked once."""
    experts = range(len(matrices[0]))
    sums = [torch.stack([measure(matrix[expert]) for matrix in matrices]).sum() for expert in experts]
    found: Array = torch.stack(sums).cpu().numpy()
    return found


def _sum_of_sizes(matrix: Tensor) -> Tensor:
    """Σ|w|."""
    return _row_norms(matrix, 1).sum()


def _sum_of_squares(matrix: Tensor) -> Tensor:
    """Σw²."""
    return _row_norms(matrix, 2).square().sum()


def _row_norms(matrix: Tensor, order: int) -> Tensor:
    """Norms of the rows [rows], in float64, of sums in float32: float64 throughout takes 8 times as long."""
    precision = torch.promote_types(matrix.dtype, torch.float32)
    norms: Tensor = torch.linalg.vector_norm(matrix.to(precision), ord=order, dim=-1)
    return norms.double()


def _elements(matrix: Tensor) -> Tensor:
    return torch.tensor(matrix.numel(), dtype=torch.float64, device=matrix.device)
