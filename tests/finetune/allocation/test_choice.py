"""Counts of least cost: as the best of all count vectors, and never others than the budget allows."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from criteria.budget import Budget, from_fraction
from criteria.scores import Scores
from experts.arrays import Array, Marks
from experts.errors import ExciseError
from experts.shape import Shape
from finetune.allocation.allocate import allocated, cuts_of
from finetune.allocation.choice import cheapest
from finetune.allocation.costs import Costs
from finetune.allocation.grid import Grid


def best_of_all(costs: Array, counts: Sequence[int], total: int) -> float:
    """The lowest sum over every count vector of the total; ∞ where there is none."""
    vectors = itertools.product(range(len(counts)), repeat=len(costs))
    sums = [
        sum(costs[row, place] for row, place in enumerate(places))
        for places in vectors
        if sum(counts[place] for place in places) == total
    ]
    return min(sums, default=np.inf)


@settings(max_examples=200)
@given(
    seed=st.integers(0, 10_000),
    layers=st.integers(1, 4),
    number=st.integers(1, 5),
    unit=st.integers(1, 3),
    lowest=st.integers(1, 4),
    forbidden=st.floats(0, 0.4),
    total=st.integers(0, 60),
)
def test_nothing_is_cheaper(
    seed: int, layers: int, number: int, unit: int, lowest: int, forbidden: float, total: int
) -> None:
    """Rising costs and others, some counts not allowed; totals that can be met and others."""
    rng = np.random.default_rng(seed)
    costs = rng.normal(size=(layers, number)) if seed % 2 else rng.random((layers, number)).cumsum(1)[:, ::-1]
    costs = np.where(rng.random(costs.shape) < forbidden, np.inf, costs)
    counts = [lowest + unit * place for place in range(number)]
    expected = best_of_all(costs, counts, total)
    if np.isinf(expected):
        with pytest.raises(ExciseError, match=f"cannot keep {total} in all"):
            cheapest(costs, counts, total)
        return
    found = cheapest(costs, counts, total)
    assert sum(found) == total
    assert sum(costs[row, counts.index(count)] for row, count in enumerate(found)) == pytest.approx(expected)


def test_of_equally_cheap_counts_the_upper_layers_keep_fewer() -> None:
    assert cheapest(np.zeros((3, 3)), (2, 3, 4), 8) == (4, 2, 2)


def test_by_hand() -> None:
    """Layer 1 is dear to cut, layer 0 is not."""
    costs = np.array([[0.3, 0.1, 0.0], [0.9, 0.5, 0.0]])
    assert cheapest(costs, (2, 3, 4), 6) == (2, 4)


SHAPE = Shape((1, 2, 3), 16, 4)
NONE = np.zeros((3, 16), bool)


def budget(shape: Shape = SHAPE, total: int = 24, floor: int = 4, multiple: int = 1) -> Budget:
    return Budget(total, "global", floor, "asked", multiple)


def test_counts_begin_at_the_floor_and_are_multiples() -> None:
    assert Grid(SHAPE, budget(), NONE).counts == tuple(range(4, 17))
    assert Grid(SHAPE, budget(), NONE).measured == (4, 6, 7, 9, 11, 13, 14)
    assert Grid(SHAPE, budget(floor=6, multiple=3), NONE).counts == (6, 9, 12, 15)
    assert Grid(SHAPE, budget(floor=6, multiple=3), NONE).measured == (6, 9, 12, 15)
    grouped = Shape((0,), 16, 4, groups=4, top_groups=2)
    assert Grid(grouped, budget(grouped, floor=9), np.zeros((1, 16), bool)).counts == (12, 16)


def test_many_counts_are_measured_here_and_there_and_lie_on_lines() -> None:
    shape = Shape((0, 1), 128, 8)
    grid = Grid(shape, budget(shape, floor=8), np.zeros((2, 128), bool))
    assert grid.measured == (8, 25, 42, 59, 77, 94, 111)
    measured = np.stack([128.0 - np.array(grid.measured), np.full(7, 3.0)])
    every = grid.of_all(measured)
    np.testing.assert_allclose(every[0], 128 - np.arange(8, 129))  # a line stays one
    np.testing.assert_allclose(every[1, : 111 - 8 + 1], 3.0)
    np.testing.assert_allclose(every[1, 111 - 8 :], 3 * np.arange(17, -1, -1) / 17)  # all kept costs nothing


def protected(*ids: tuple[int, int], shape: tuple[int, int] = (3, 16)) -> Marks:
    marks = np.zeros(shape, bool)
    for place in ids:
        marks[place] = True
    return marks


def test_protected_experts_stay() -> None:
    """Layer 2 has six of them; no count below is measured, or chosen however cheap it were."""
    marks = protected(*[(1, expert) for expert in range(6)])
    grid = Grid(SHAPE, budget(), marks)
    measured = np.zeros((3, 7))
    measured[1, 0] = np.nan
    every = grid.of_all(measured)
    assert np.isinf(every[1, :2]).all()
    assert np.isfinite(every[1, 2:]).all()
    assert np.isfinite(every[[0, 2]]).all()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (budget(total=12), "asked: every layer has to keep 4 experts, so there are no counts to choose"),
        (Budget(24, "layer", 4, "asked"), "asked: counts per layer are chosen in scope global alone"),
        (budget(floor=16, total=48), "asked: every layer has to keep 16 experts, so there are no counts"),
    ],
)
def test_budgets_without_a_choice(asked: Budget, message: str) -> None:
    with pytest.raises(ExciseError, match=message):
        Grid(SHAPE, asked, NONE).check()


@pytest.mark.parametrize("multiple_of", [1, 2, 4])
@pytest.mark.parametrize("floor", [None, 6])
def test_plans_hold_what_the_budget_promises(multiple_of: int, floor: int | None) -> None:
    """On costs that make one layer dear: total, floor, multiples, protection, the best of every layer."""
    shape = Shape(tuple(range(6)), 16, 4)
    marks = protected(*[(0, expert) for expert in range(9, 16)], shape=(6, 16))
    values = np.random.default_rng(3).random((6, 16))
    scores = Scores(values, marks, shape.layers, "by hand", "drawn")
    asked = from_fraction(shape, 0.25, "global", floor, multiple_of)
    grid = Grid(shape, asked, marks)
    cuts = cuts_of(scores, grid)
    assert min(len(cut.kept) for cut in cuts if cut.row == 0) >= 7
    dear = np.array([(16.0 - len(cut.kept)) * (50 if cut.row == 4 else 1) for cut in cuts])
    allocation = allocated(scores, grid, Costs(dear, -dear))
    counts = list(allocation.counts.values())
    assert sum(counts) == asked.total == 72
    assert counts[4] == 16
    assert counts[0] >= 7
    assert min(counts) >= (floor or 4)
    assert not [count for count in counts if count % multiple_of]
    for row, layer in enumerate(shape.layers):
        best = sorted(range(16), key=lambda expert: (not marks[row, expert], -values[row, expert]))
        assert set(allocation.plan.kept[layer]) == set(best[: counts[row]])
    assert allocation.plan.budget == f"{asked.text} counts=refitted"
    assert allocation.plan.scope == "global"
    reverse = allocation.plan.reverse
    assert reverse is not None
    assert list(reverse.counts.values()) == counts
    expected = sum((16 - count) * (50 if row == 4 else 1) for row, count in enumerate(counts))
    assert allocation.expected == pytest.approx(expected)
    assert sum(allocation.by_scores.values()) == asked.total
    assert allocation.expected_by_scores >= allocation.expected
