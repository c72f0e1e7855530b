"""One factor a layer: routers that do not renormalise gain gate mass for the experts that are kept.

With R [T, H], what the kept down projections W give (R = Z W), and E, what the output lacks, the change is

    X = a W,    a = Σ R·E / ((1 + λ) Σ R²).

λ is 0 or ∞: the factor of one fold is taken where it helps on the other, both ways together, or none is.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from experts.inner_activations import Features
from finetune.refit.equations import FOLDS, Equations


class Scale(Equations):
    """Sums over tokens and dimensions, in float64.

    Args:
        weights: W of the K kept experts [K, I, H]

    Attributes:
        sums: Σ R², Σ R·E, Σ E² of each fold [2, 3]
    """

    def __init__(self, weights: Tensor) -> None:
        self.weights = weights.double()
        self.sums = torch.zeros(len(FOLDS), 3, dtype=torch.float64, device=weights.device)
        self.rows = torch.zeros(len(weights), dtype=torch.int64, device=weights.device)

    def add(self, fold: int, features: Sequence[Features], lacking: Tensor) -> None:
        lacking = lacking.double()
        given = torch.zeros_like(lacking)
        for expert, own in enumerate(features):
            self.rows[expert] += len(own.tokens)
            given[own.tokens] += own.values.double() @ self.weights[expert]
        products = (given.square(), given * lacking, lacking.square())
        self.sums[fold] += torch.stack([product.sum() for product in products])

    def leave(self, expert: int) -> None:
        raise AssertionError(f"the factor is that of all experts; {expert} cannot be left out")

    def solution(self, ridge: float, folds: Sequence[int] = FOLDS) -> Tensor:
        square, product, _ = self.sums[list(folds)].sum(0).tolist()
        if math.isinf(ridge) or square == 0:
            return torch.zeros_like(self.weights)
        change: Tensor = self.weights * (product / ((1 + ridge) * square))
        return change

    def left(self, change: Tensor | None, folds: Sequence[int] = FOLDS) -> float:
        square, product, lacking = self.sums[list(folds)].sum(0).tolist()
        factor = 0.0 if change is None else self.factor(change)
        return float(lacking - 2 * factor * product + factor * factor * square)

    def factor(self, change: Tensor) -> float:
        """a of a change a W."""
        return float((change * self.weights).sum() / self.weights.square().sum())

    def best_ridge(self) -> float:
        """0, or ∞ where no factor helps on text that it was not taken from."""
        return min((math.inf, 0.0), key=self._unseen)
