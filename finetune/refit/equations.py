"""The least squares of one layer: which change of the down projections brings its output back.

Z [T, K·I] are the features: what enters the down projection of each of K kept experts, times its gate weight;
0 where a token does not go to it. E [T, H] is what the layer's output lacks. The change X [K·I, H] solves

    (ZᵀZ + λ̄ I) X = ZᵀE,    λ̄ = λ · mean diag(ZᵀZ),

so that X = 0 for λ = ∞. The text is in two folds: λ is chosen on each by what the other one gave.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from experts.inner_activations import Features as Features

GRID = (math.inf, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003)  # λ; ∞ leaves everything as it is
FIRST = 0.1  # λ that is tried first
FOLDS = (0, 1)


class Equations(ABC):
    """Least squares over text, K experts of I inner units.

    Attributes:
        rows: tokens of each expert [K]
    """

    rows: Tensor

    @abstractmethod
    def add(self, fold: int, features: Sequence[Features], lacking: Tensor) -> None:
        """Add a batch.

        Args:
            fold: 0 or 1
            features: of every kept expert
            lacking: E [T, H]
        """

    @abstractmethod
    def solution(self, ridge: float, folds: Sequence[int] = FOLDS) -> Tensor:
        """The change X [K, I, H], from some folds. ridge: λ above 0."""

    @abstractmethod
    def left(self, change: Tensor | None, folds: Sequence[int] = FOLDS) -> float:
        """Sum of squares that a change X [K, I, H] leaves of E, on some folds. None = no change."""

    @abstractmethod
    def leave(self, expert: int) -> None:
        """Let an expert be as it is. expert: its place among the kept ones."""

    def best_ridge(self) -> float:
        """λ of the grid whose solution on one fold leaves least on the other, both ways together.

        The search walks downhill from λ = 0.1: what is left has one valley, and λ of the same order do alike.
        λ = ∞ is compared at last, so that a change which harms on unseen text is never made.
        """
        place, left = GRID.index(FIRST), self._unseen(FIRST)
        for step in (-1, 1):
            while 0 < place + step < len(GRID) and (other := self._unseen(GRID[place + step])) < left:
                place, left = place + step, other
        return GRID[place] if left < self._unseen(math.inf) else math.inf

    def _unseen(self, ridge: float) -> float:
        return sum(self.left(self.solution(ridge, [1 - fold]), [fold]) for fold in FOLDS)


class NoSolution(Exception):  # noqa: N818 - says what is missing
    """The equations cannot be solved. unknown: the first one that has no value, of K·I."""

    def __init__(self, unknown: int) -> None:
        self.unknown = unknown


def factored(gram: Tensor, shift: float, first: int = 0) -> Tensor:
    """The Cholesky factor of G + λ̄ I, in the memory of G.

    Args:
        gram: G [n, n], symmetric; lost
        shift: λ̄
        first: the number of its first unknown

    Raises:
        NoSolution: there is none: numbers are not finite, or λ̄ is too small.
    """
    gram.diagonal().add_(shift)
    factor = gram.mT  # column by column, as LAPACK wants it: no copy is made
    order = torch.empty((), dtype=torch.int32, device=gram.device)
    torch.linalg.cholesky_ex(factor, out=(factor, order))
    if int(order) or not torch.isfinite(factor.diagonal()).all():
        raise NoSolution(first + max(0, int(order) - 1))
    return factor
