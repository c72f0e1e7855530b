"""All experts of a layer solved at once, from ZᵀZ in memory: 16 bytes a pair of unknowns."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from experts.feature_products import add_gram, add_right
from experts.inner_activations import Features
from finetune.refit.equations import FOLDS, Equations, factored


class Joint(Equations):
    """Sums of products, in float64.

    Args:
        num_experts: K
        inner: I
        width: H
        device: where the sums are

    Attributes:
        gram: ZᵀZ of each fold [2, K·I, K·I]
        right: ZᵀE of each fold [2, K·I, H]
        square: sum of E² of each fold [2]
    """

    def __init__(self, num_experts: int, inner: int, width: int, device: torch.device) -> None:
        self.num_experts, self.inner = num_experts, inner
        unknowns, double = num_experts * inner, torch.float64
        self.gram = torch.zeros(len(FOLDS), unknowns, unknowns, dtype=double, device=device)
        self.right = torch.zeros(len(FOLDS), unknowns, width, dtype=double, device=device)
        self.square = torch.zeros(len(FOLDS), dtype=double, device=device)
        self.rows = torch.zeros(num_experts, dtype=torch.int64, device=device)

    @staticmethod
    def bytes_for(num_experts: int, inner: int, width: int) -> int:
        """Memory at most, while it is solved."""
        unknowns = num_experts * inner
        folds = len(FOLDS)  # and the factor, which torch copies to solve with it
        return 8 * ((folds + 2) * unknowns * unknowns + 4 * folds * unknowns * width)

    def add(self, fold: int, features: Sequence[Features], lacking: Tensor) -> None:
        lacking = lacking.double()
        self.square[fold] += lacking.square().sum()
        self.rows += torch.tensor([len(own.tokens) for own in features], device=self.rows.device)
        add_right(self.right[fold], features, lacking)
        add_gram(self.gram[fold], features, len(lacking))

    def _unknowns(self, expert: int) -> slice:
        return slice(expert * self.inner, (expert + 1) * self.inner)

    def leave(self, expert: int) -> None:
        own = self._unknowns(expert)
        self.gram[:, own] = 0
        self.gram[:, :, own] = 0
        self.right[:, own] = 0

    def solution(self, ridge: float, folds: Sequence[int] = FOLDS) -> Tensor:
        right = _together(self.right, folds)
        scale = float(_together(self.gram.diagonal(dim1=1, dim2=2), folds).mean())
        if math.isinf(ridge) or scale == 0:
            return torch.zeros_like(right).view(self.num_experts, self.inner, -1)
        gram = self.gram[folds[0]].clone()
        for fold in folds[1:]:
            gram += self.gram[fold]
        solved = torch.cholesky_solve(right, factored(gram, ridge * scale))
        return solved.view(self.num_experts, self.inner, -1)

    def left(self, change: Tensor | None, folds: Sequence[int] = FOLDS) -> float:
        square = float(self.square[list(folds)].sum())
        if change is None:
            return square
        flat = change.reshape(len(self.gram[0]), -1)
        gains = [float((flat * (self.gram[fold] @ flat - 2 * self.right[fold])).sum()) for fold in folds]
        return square + sum(gains)


def _together(sums: Tensor, folds: Sequence[int]) -> Tensor:
    """What some folds come to; of one fold it is no copy."""
    return sums[folds[0]] if len(folds) == 1 else sums[list(folds)].sum(0)
