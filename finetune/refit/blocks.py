"""Expert by expert from stored features, where ZᵀZ of a layer does not fit: block Gauss–Seidel.

An expert's change is solved for while the others stand still, over and over:

    X_a ← (Z_aᵀZ_a + λ̄ I)⁻¹ (Z_aᵀR + Z_aᵀZ_a X_a),    R = E − Z X,

where R is kept up to date. The equations are those of joint.py, and so is what it converges to.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from experts.inner_activations import Features
from finetune.refit.equations import FOLDS, Equations, factored

CLOSE = 1e-4  # of a round's change against the solution, below which it has converged
ROUNDS = 100  # at most


@dataclass(frozen=True)
class _Batch:
    """A batch of text: its fold, the features of every kept expert, and E [T, H]."""

    fold: int
    features: list[Features]
    lacking: Tensor


class Blocks(Equations):
    """Stored features.

    Args:
        num_experts: K
        inner: I
        width: H
        device: where the features are
        close: relative change of a round that ends the rounds
    """

    def __init__(
        self, num_experts: int, inner: int, width: int, device: torch.device, close: float = CLOSE
    ) -> None:
        self.num_experts, self.inner, self.width, self.close = num_experts, inner, width, close
        self.rows = torch.zeros(num_experts, dtype=torch.int64, device=device)
        self._batches: list[_Batch] = []
        self._left: set[int] = set()

    def add(self, fold: int, features: Sequence[Features], lacking: Tensor) -> None:
        self._batches.append(_Batch(fold, list(features), lacking))
        self.rows += torch.tensor([len(one.tokens) for one in features], device=self.rows.device)

    def leave(self, expert: int) -> None:
        self._left.add(expert)

    def solution(self, ridge: float, folds: Sequence[int] = FOLDS) -> Tensor:
        batches = [batch for batch in self._batches if batch.fold in folds]
        change = torch.zeros(
            self.num_experts, self.inner, self.width, dtype=torch.float64, device=self.rows.device
        )
        grams = self._grams(batches)
        scale = float(grams.diagonal(dim1=1, dim2=2).mean())
        if math.isinf(ridge) or scale == 0:
            return change
        factors = [
            factored(gram.clone(), ridge * scale, place * self.inner) for place, gram in enumerate(grams)
        ]
        residuals = [batch.lacking.to(torch.float64, copy=True) for batch in batches]
        for _ in range(ROUNDS):
            before = change.clone()
            for expert in range(self.num_experts):
                if expert not in self._left:
                    self._solve_one(expert, batches, residuals, (grams[expert], factors[expert]), change)
            if torch.linalg.vector_norm(change - before) <= self.close * torch.linalg.vector_norm(change):
                break
        return change

    def _grams(self, batches: list[_Batch]) -> Tensor:
        """Z_aᵀZ_a of every expert [K, I, I], in float64; 0 for those that are left as they are."""
        grams = torch.zeros(
            self.num_experts, self.inner, self.inner, dtype=torch.float64, device=self.rows.device
        )
        for batch in batches:
            for expert, own in enumerate(batch.features):
                if expert not in self._left:
                    values = own.values.double()
                    grams[expert] += values.T @ values
        return grams

    def _solve_one(
        self,
        expert: int,
        batches: list[_Batch],
        residuals: list[Tensor],
        system: tuple[Tensor, Tensor],
        change: Tensor,
    ) -> None:
        """Solve for one expert, in place. system: its Z_aᵀZ_a, and the factor of that + λ̄ I."""
        gram, factor = system
        right = gram @ change[expert]
        for batch, residual in zip(batches, residuals, strict=True):
            own = batch.features[expert]
            right += own.values.double().T @ residual[own.tokens]
        step = torch.cholesky_solve(right, factor) - change[expert]
        for batch, residual in zip(batches, residuals, strict=True):
            own = batch.features[expert]
            residual[own.tokens] -= own.values.double() @ step
        change[expert] += step

    def left(self, change: Tensor | None, folds: Sequence[int] = FOLDS) -> float:
        total = 0.0
        for batch in self._batches:
            if batch.fold in folds:
                residual = batch.lacking.to(torch.float64, copy=True)
                for expert, own in enumerate(batch.features if change is not None else ()):
                    assert change is not None, "asked above"
                    residual[own.tokens] -= own.values.double() @ change[expert]
                total += float(residual.square().sum())
        return total
