"""The least squares of a layer: against a dense solution in numpy, both solvers against each other."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from finetune.refit.blocks import Blocks
from finetune.refit.equations import GRID, Equations, Features, NoSolution
from finetune.refit.joint import Joint

K, INNER, WIDTH, TOKENS = 3, 4, 5, 60
Solver = Callable[[], Equations]
CPU = torch.device("cpu")


def joint() -> Equations:
    return Joint(K, INNER, WIDTH, CPU)


def blocks() -> Equations:
    return Blocks(K, INNER, WIDTH, CPU, close=1e-13)


SOLVERS = pytest.mark.parametrize("solver", [joint, blocks])


def batches(noise: float = 0.1, seed: int = 0) -> list[tuple[list[Features], Tensor, np.ndarray]]:
    """Four batches, each token with two of three experts: features, E, and Z as a dense matrix."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(K * INNER, WIDTH))
    found = []
    for _ in range(4):
        chosen = np.stack([rng.permutation(K)[:2] for _ in range(TOKENS)])
        dense, features = np.zeros((TOKENS, K * INNER)), []
        for expert in range(K):
            tokens = np.flatnonzero((chosen == expert).any(1))
            values = rng.normal(size=(len(tokens), INNER))
            dense[tokens, expert * INNER : (expert + 1) * INNER] = values
            features.append(Features(torch.from_numpy(tokens), torch.from_numpy(values)))
        lacking = dense @ truth + noise * rng.normal(size=(TOKENS, WIDTH))
        found.append((features, torch.from_numpy(lacking), dense))
    return found


def filled(solver: Solver, **options: float) -> tuple[Equations, np.ndarray, np.ndarray]:
    """Equations, Z and E of all batches."""
    equations, parts = solver(), batches(**options)
    for number, (features, lacking, _) in enumerate(parts):
        equations.add(number % 2, features, lacking)
    return equations, np.concatenate([dense for *_, dense in parts]), np.concatenate([e for _, e, _ in parts])


def dense_solution(features: np.ndarray, lacking: np.ndarray, ridge: float) -> np.ndarray:
    gram = features.T @ features
    shifted = gram + ridge * np.diag(gram).mean() * np.eye(len(gram))
    return np.linalg.solve(shifted, features.T @ lacking)


@SOLVERS
@pytest.mark.parametrize("ridge", [0.003, 0.1, 3.0])
def test_a_dense_solution(solver: Solver, ridge: float) -> None:
    equations, features, lacking = filled(solver)
    expected = dense_solution(features, lacking, ridge)
    found = equations.solution(ridge)
    np.testing.assert_allclose(found.reshape(expected.shape).numpy(), expected, rtol=1e-9, atol=1e-11)
    left = np.square(lacking - features @ expected).sum()
    assert equations.left(found) == pytest.approx(left, rel=1e-9)
    assert equations.left(None) == pytest.approx(np.square(lacking).sum())


@SOLVERS
def test_a_fold_is_half_of_the_batches(solver: Solver) -> None:
    equations, features, lacking = filled(solver)
    second = np.r_[TOKENS : 2 * TOKENS, 3 * TOKENS : 4 * TOKENS]
    expected = dense_solution(features[second], lacking[second], 0.1)
    found = equations.solution(0.1, [1])
    np.testing.assert_allclose(found.reshape(expected.shape).numpy(), expected, rtol=1e-9, atol=1e-11)


@SOLVERS
def test_infinite_ridge_changes_nothing(solver: Solver) -> None:
    equations, _, lacking = filled(solver)
    assert not equations.solution(math.inf).any()
    assert equations.left(equations.solution(math.inf)) == pytest.approx(np.square(lacking).sum())


@SOLVERS
def test_an_expert_that_is_left_as_it_is(solver: Solver) -> None:
    """The others are solved for as if it had no features."""
    equations, features, lacking = filled(solver)
    equations.leave(1)
    found = equations.solution(math.ulp(1.0))
    assert not found[1].any()
    others = np.r_[0:INNER, 2 * INNER : 3 * INNER]
    expected = np.linalg.lstsq(features[:, others], lacking, rcond=None)[0]
    np.testing.assert_allclose(found[[0, 2]].reshape(expected.shape).numpy(), expected, rtol=1e-6, atol=1e-8)


@SOLVERS
def test_the_ridge_fits_the_noise(solver: Solver) -> None:
    """Little where the features explain everything; never one that is worse than no change on other text."""
    assert filled(solver, noise=0.0)[0].best_ridge() == min(GRID)
    noisy = filled(solver, noise=300.0)[0]
    chosen = noisy.best_ridge()
    assert chosen > 1
    assert noisy._unseen(chosen) <= noisy._unseen(math.inf)


@SOLVERS
@pytest.mark.parametrize("noise", [0.0, 1.0, 10.0, 30.0, 100.0, 300.0])
def test_the_walk_ends_at_the_best_ridge(solver: Solver, noise: float) -> None:
    """The same as every λ of the grid tried."""
    equations = filled(solver, noise=noise)[0]
    assert equations.best_ridge() == min(GRID, key=equations._unseen)


@SOLVERS
def test_numbers_that_are_not_finite_are_named(solver: Solver) -> None:
    equations, _, _ = filled(solver)
    features, lacking, _ = batches(seed=1)[0]
    features[1].values[3, 2] = math.nan
    equations.add(0, features, lacking)
    with pytest.raises(NoSolution) as refused:
        equations.solution(0.1)
    assert refused.value.unknown // INNER <= 1
