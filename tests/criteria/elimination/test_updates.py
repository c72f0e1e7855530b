"""Exact updates, in both forms, against a fresh dense solution in numpy after every removal."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from criteria.elimination.dual import Dual
from criteria.elimination.primal import Primal
from criteria.elimination.problem import RIDGE, Elimination, Problem
from experts.errors import ExciseError
from experts.inner_activations import Features

N, INNER, WIDTH, TOKENS = 5, 4, 3, 40
FORMS = pytest.mark.parametrize("form", [Primal, Dual])


def problem(tokens: int = TOKENS, lacking: float = 0.5) -> tuple[Problem, np.ndarray]:
    """Five experts, two a token, the last one never; and Z as a dense array [T, n, I]."""
    rng = np.random.default_rng(2)
    chosen = np.stack([rng.permutation(N - 1)[:2] for _ in range(tokens)])
    dense, features = np.zeros((tokens, N, INNER)), []
    for expert in range(N):
        own = np.flatnonzero((chosen == expert).any(1))
        values = rng.normal(size=(len(own), INNER))
        dense[own, expert] = values
        features.append(Features(torch.from_numpy(own), torch.from_numpy(values)))
    weights = rng.normal(size=(N, INNER, WIDTH))
    lack = lacking * rng.normal(size=(tokens, WIDTH))
    return Problem(features, torch.from_numpy(weights), torch.from_numpy(lack)), dense


def fresh(given: Problem, dense: np.ndarray, left: list[int]) -> float:
    """J of the experts that are left, as an ordinary least squares problem with the penalty as rows."""
    gone = [expert for expert in range(N) if expert not in left]
    weights = given.weights.numpy()
    lacking = given.lacking.numpy() + np.einsum("tni,nih->th", dense[:, gone], weights[gone])
    shift = RIDGE * np.square(dense).sum() / (N * INNER)
    features = dense[:, left].reshape(len(dense), -1)
    rows = np.concatenate([features, np.sqrt(shift) * np.eye(features.shape[1])])
    wanted = np.concatenate([lacking, np.zeros((features.shape[1], WIDTH))])
    change = np.linalg.lstsq(rows, wanted, rcond=None)[0]
    return float(np.square(wanted - rows @ change).sum())


@FORMS
@pytest.mark.parametrize("lacking", [0.0, 0.5])
@pytest.mark.parametrize("tokens", [12, TOKENS])
def test_every_removal_is_a_fresh_solution(
    form: Callable[[Problem], Elimination], tokens: int, lacking: float
) -> None:
    given, dense = problem(tokens, lacking)
    found, left = form(given), list(range(N))
    assert found.objective == pytest.approx(fresh(given, dense, left), rel=1e-9, abs=1e-12)
    for gone in (3, 0, 4, 1):
        for expert in left:
            others = [one for one in left if one != expert]
            after = fresh(given, dense, others)
            assert found.objective + found.cost(expert) == pytest.approx(after, rel=1e-8, abs=1e-10)
        found.remove(gone)
        left.remove(gone)
        assert found.objective == pytest.approx(fresh(given, dense, left), rel=1e-8, abs=1e-10)


@FORMS
def test_an_expert_that_no_token_goes_to_costs_nothing(form: Callable[[Problem], Elimination]) -> None:
    given, _ = problem()
    assert form(given).cost(N - 1) == pytest.approx(0, abs=1e-10)


@FORMS
def test_numbers_that_are_not_finite_are_refused(form: Callable[[Problem], Elimination]) -> None:
    given, _ = problem()
    given.features[1].values[0, 0] = torch.inf
    with pytest.raises(ExciseError, match="the equations of a layer have no solution"):
        form(given)
