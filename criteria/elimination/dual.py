"""Exact elimination from the inverse of a matrix of tokens [T, T], for layers of more unknowns than tokens.

With P = (ZZᵀ + λ̄I)⁻¹ it is J = λ̄ tr(EᵀPE). When q goes, E ← E + Z_q W_q, and with S = I − Z_qᵀPZ_q

    P ← P + P Z_q S⁻¹ Z_qᵀ P    (Woodbury).
"""

import torch
from torch import Tensor

from criteria.elimination.problem import Elimination, Problem, factor, square_over


class Dual(Elimination):
    """Memory: two matrices [T, T] in float64."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.shift = problem, problem.shift
        tokens = len(problem.lacking)
        kernel = self.shift * torch.eye(tokens, dtype=torch.float64, device=problem.lacking.device)
        for own in problem.features:
            values = own.values.double()
            kernel[own.tokens[:, None], own.tokens] += values @ values.T
        self.inverse = torch.cholesky_inverse(factor(kernel))
        self.solved = self.inverse @ problem.lacking
        self.objective = self.shift * float((problem.lacking * self.solved).sum())

    def cost(self, place: int) -> float:
        own, given = self.problem.features[place], self._given(place)
        spread = self._block(place) @ given
        grown = (given * (2 * self.solved[own.tokens] + spread)).sum()
        right = own.values.double().T @ (self.solved[own.tokens] + spread)
        return self.shift * (float(grown) + square_over(self._lower(place), right))

    def remove(self, place: int) -> None:
        own, lower = self.problem.features[place], self._lower(place)
        self.objective += self.cost(place)
        self.solved = self.solved + self.inverse[:, own.tokens] @ self._given(place)
        column = self.inverse[:, own.tokens] @ own.values.double()
        right = own.values.double().T @ self.solved[own.tokens]
        self.solved = self.solved + column @ torch.cholesky_solve(right, lower)
        self.inverse += column @ torch.cholesky_solve(column.T, lower)

    def _given(self, place: int) -> Tensor:
        """Z_q W_q at the tokens of q."""
        return self.problem.features[place].values.double() @ self.problem.weights[place]

    def _block(self, place: int) -> Tensor:
        tokens = self.problem.features[place].tokens
        return self.inverse[tokens[:, None], tokens]

    def _lower(self, place: int) -> Tensor:
        """The factor of S."""
        values = self.problem.features[place].values.double()
        identity = torch.eye(values.shape[1], dtype=torch.float64, device=values.device)
        return factor(identity - values.T @ self._block(place) @ values)
