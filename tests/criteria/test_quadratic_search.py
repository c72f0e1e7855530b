"""The search for a removed set over pairs: against every set, and against relaxation and rounding."""

import itertools

import numpy as np
import pytest
from scipy.optimize import minimize

from criteria.budget import Budget, from_counts, from_fraction, from_total
from criteria.quadratic_search import FoundSet, cheapest_set
from criteria.removal_room import Room
from criteria.scores import Scores
from criteria.selection import plan_for
from experts.errors import ExciseError
from experts.shape import Shape


def pairs_of(seed: int, count: int, rank: int, *, positive: bool = True) -> np.ndarray:
    """A random sum of squares; its entries are all positive if asked for (norms), else of both signs."""
    draws = np.random.default_rng(seed).normal(size=(rank, count))
    factors = np.abs(draws) if positive else draws
    return factors.T @ factors


def room_for(shape: Shape, budget: Budget, *protected: tuple[int, int]) -> Room:
    marks = np.zeros((shape.num_layers, shape.num_experts), bool)
    for cell in protected:
        marks[cell] = True
    return Room(shape, budget, marks)


def removed_by(found: FoundSet, room: Room) -> np.ndarray:
    """What the plan of these scores removes [L·E]: selection has to keep what the search kept."""
    scores = Scores(found.score, room.protected, room.shape.layers, "test", "")
    kept = plan_for(scores, room.budget, room.shape).kept
    return ~room.shape.marks(kept).reshape(-1)


def cost(pairs: np.ndarray, removed: np.ndarray) -> float:
    return float(pairs[np.ix_(removed, removed)].sum())


@pytest.mark.parametrize("positive", [True, False])
def test_it_equals_exhaustive_search_on_a_few_experts(positive: bool) -> None:
    """All 70 sets of 4 of 8 experts, and all 924 pairs of counts over two layers, are tried."""
    one = room_for(Shape((0,), 8, 2), from_fraction(Shape((0,), 8, 2), 0.5, "layer"))
    both = Shape((0, 1), 6, 2)
    two = room_for(both, from_fraction(both, 0.5, "global"))
    for seed in range(10):
        for room in (one, two):
            count = room.shape.total
            pairs = pairs_of(seed, count, 12, positive=positive)
            best = np.inf
            for ids in itertools.combinations(range(count), count // 2):
                marks = np.isin(np.arange(count), ids)
                kept = (~marks).reshape(room.shape.num_layers, -1).sum(axis=1)
                best = min(best, cost(pairs, marks)) if (kept >= 2).all() else best
            found = cheapest_set(pairs, room, "test")
            assert found.swapped == pytest.approx(best)
            assert cost(pairs, removed_by(found, room)) == pytest.approx(best)
            assert found.swapped <= found.greedy + 1e-9


@pytest.mark.parametrize("seed", range(6))
def test_it_is_never_worse_than_relaxation_and_rounding(seed: int) -> None:
    """min pᵀFp over 0 ≤ p ≤ 1, Σp = B by SLSQP, and the B largest p: the solver of arXiv 2609.18916."""
    count, removed = 24, 12
    pairs = pairs_of(seed, count, 8 + 6 * seed, positive=seed % 2 == 0)
    shape = Shape((0,), count, 2)
    room = room_for(shape, from_fraction(shape, removed / count, "layer"))
    relaxed = minimize(
        lambda p: p @ pairs @ p,
        np.full(count, removed / count),
        jac=lambda p: 2 * pairs @ p,
        bounds=[(0, 1)] * count,
        constraints={"type": "eq", "fun": lambda p: p.sum() - removed, "jac": np.ones_like},
        method="SLSQP",
    )
    rounded = np.isin(np.arange(count), np.argsort(-relaxed.x, kind="stable")[:removed])
    found = cheapest_set(pairs, room, "test")
    assert found.swapped <= cost(pairs, rounded) * (1 + 1e-9)


def test_two_copies_of_an_expert_do_not_both_go() -> None:
    """By hand. Experts 0 and 1 do the same (each costs 1, both 4), 2 and 3 differ (1.2 each, 2.4 both): one
    of each kind costs 2.2.
    """
    pairs = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1.2, 0], [0, 0, 0, 1.2]])
    shape = Shape((0,), 4, 2)
    room = room_for(shape, from_fraction(shape, 0.5, "layer"))
    found = cheapest_set(pairs, room, "test")
    assert found.swapped == pytest.approx(2.2)
    np.testing.assert_array_equal(removed_by(found, room), [False, True, False, True])  # lower ids stay


@pytest.mark.parametrize(
    ("scope", "multiple", "groups"),
    [
        ("layer", 1, 1),
        ("layer", 1, 2),
        ("global", 1, 1),
        ("global", 1, 2),
        ("global", 4, 1),
        ("global", 4, 2),
    ],
)
def test_budgets_are_kept_and_plans_remove_what_was_found(scope: str, multiple: int, groups: int) -> None:
    """Units, router groups, floors and protected experts; the plan's own checks raise where one is broken."""
    shape = Shape((0, 1, 3), 12, 2, groups, 1)
    budget = from_total(shape, 20 if scope == "global" else 24, scope, None, "test", multiple)  # type: ignore[arg-type]
    room = room_for(shape, budget, (1, 3), (1, 9))
    for seed in range(5):
        pairs = pairs_of(seed, shape.total, 50, positive=False)
        found = cheapest_set(pairs, room, "test")
        removed = removed_by(found, room)
        assert cost(pairs, removed) == pytest.approx(found.swapped)
        assert not removed[[15, 21]].any()


def test_experts_that_do_not_divide_by_the_unit() -> None:
    """Of 10 experts a layer keeps 8 or 4 where counts are multiples of 4."""
    shape = Shape((0, 1), 10, 2)
    room = room_for(shape, from_total(shape, 12, "global", None, "test", 4))
    pairs = pairs_of(0, 20, 30)
    found = cheapest_set(pairs, room, "test")
    removed = removed_by(found, room)
    assert sorted((~removed).reshape(2, -1).sum(axis=1)) == [4, 8]
    assert cost(pairs, removed) == pytest.approx(found.swapped)


def test_counts_given_by_hand() -> None:
    shape = Shape((0, 1), 8, 2)
    room = room_for(shape, from_counts(shape, {0: 3}))
    removed = removed_by(cheapest_set(pairs_of(1, 16, 20), room, "test"), room)
    np.testing.assert_array_equal(removed.reshape(2, -1).sum(axis=1), [5, 0])


def test_no_room_is_said() -> None:
    shape = Shape((0,), 4, 2)
    room = room_for(shape, from_fraction(shape, 0.5, "layer"), (0, 0), (0, 1), (0, 2))
    with pytest.raises(ExciseError, match="test: 1 more have to go"):
        cheapest_set(np.eye(4), room, "test")
