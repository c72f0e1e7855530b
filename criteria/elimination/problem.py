"""What is left of a layer's output when an expert goes and the down projections of the others are refitted.

With features Z [T, n·I] of the n experts that are left (docs/methods.md, 9), their down projections W, and E
[T, H], which the output lacks, the objective is

    J = min_X ‖E − Z X‖² + λ̄ ‖X‖²,    λ̄ = λ · mean diag(ZᵀZ) of the features it begins with.

When expert q goes, its features go, E grows by Z_q W_q, and its part of the penalty falls away. With the same
Z all of this has an exact update: primal.py where unknowns are fewer than tokens, dual.py elsewhere.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from experts.errors import ExciseError
from experts.inner_activations import Features

RIDGE = 0.1  # λ


@dataclass(frozen=True)
class Problem:
    """A layer with n experts, over T tokens.

    Attributes:
        features: of every expert [n]
        weights: down projections [n, I, H], float64
        lacking: E [T, H], float64
    """

    features: list[Features]
    weights: Tensor
    lacking: Tensor

    @property
    def unknowns(self) -> int:
        """n·I."""
        return self.weights.shape[0] * self.weights.shape[1]

    @property
    def shift(self) -> float:
        """λ̄; of features that are all 0 anything above 0 is right."""
        square = sum(float(own.values.double().square().sum()) for own in self.features)
        return RIDGE * square / self.unknowns or 1.0


class Elimination(ABC):
    """Experts that go, one after another, by exact updates.

    Attributes:
        objective: J of those that are left
    """

    objective: float

    @abstractmethod
    def cost(self, place: int) -> float:
        """How much J grows when an expert goes. place: among the n of the problem."""

    @abstractmethod
    def remove(self, place: int) -> None:
        """Let it go."""


def factor(matrix: Tensor) -> Tensor:
    """Its Cholesky factor.

    Raises:
        ExciseError: it has none.
    """
    found, order = torch.linalg.cholesky_ex(matrix)
    if int(order) or not torch.isfinite(found.diagonal()).all():
        raise ExciseError("refit_residual: the equations of a layer have no solution; is the model sound?")
    return torch.as_tensor(found)


def square_over(lower: Tensor, right: Tensor) -> float:
    """tr(BᵀA⁻¹B) of A = L Lᵀ. lower: L; right: B."""
    return float(torch.linalg.solve_triangular(lower, right, upper=False).square().sum())
