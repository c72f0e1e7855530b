"""Exact elimination from the inverse of the normal equations [n·I, n·I], by Schur complements.

With A = ZᵀZ + λ̄I, its inverse B and V = W + X, the weights after the refit, the removal of q sets V_q to 0:

    ΔJ = tr(V_qᵀ B_qq⁻¹ V_q) − λ̄‖W_q‖²,    V ← V − B_:q B_qq⁻¹ V_q,    B ← B − B_:q B_qq⁻¹ B_q:.

Source: optimal brain surgeon, in blocks (Hassibi and Stork, 1993).
"""

import torch

from criteria.elimination.problem import Elimination, Problem, factor, square_over
from experts.feature_products import add_gram, add_right


class Primal(Elimination):
    """Memory: two matrices [n·I, n·I] in float64."""

    def __init__(self, problem: Problem) -> None:
        self.weights, self.shift = problem.weights, problem.shift
        unknowns, width = problem.unknowns, problem.lacking.shape[1]
        right = problem.weights.new_zeros(unknowns, width)
        gram = problem.weights.new_zeros(unknowns, unknowns)
        add_right(right, problem.features, problem.lacking)
        add_gram(gram, problem.features, len(problem.lacking))
        gram.diagonal().add_(self.shift)
        self.inverse = torch.cholesky_inverse(factor(gram))
        change = self.inverse @ right
        self.refitted = problem.weights.flatten(0, 1) + change
        self.objective = float(problem.lacking.square().sum() - (right * change).sum())

    def _own(self, place: int) -> slice:
        inner = self.weights.shape[1]
        return slice(place * inner, (place + 1) * inner)

    def cost(self, place: int) -> float:
        own = self._own(place)
        penalty = self.shift * float(self.weights[place].square().sum())
        return square_over(factor(self.inverse[own, own]), self.refitted[own]) - penalty

    def remove(self, place: int) -> None:
        own = self._own(place)
        self.objective += self.cost(place)
        lower, column = factor(self.inverse[own, own]), self.inverse[:, own].clone()
        self.refitted = self.refitted - column @ torch.cholesky_solve(self.refitted[own], lower)
        self.inverse -= column @ torch.cholesky_solve(column.T, lower)
