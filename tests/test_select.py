"""Budgets and plans: sizes, ties, groups, floors, protection, and what is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from criteria.budget import Shape, from_fraction, from_keep
from criteria.scores import Scores
from criteria.select import select
from experts.errors import ExciseError

SHAPE = Shape((0, 1), 4, 2)


def scores(values: list[list[float]], protected: list[list[bool]] | None = None, layers: tuple[int, ...] = (0, 1)) -> Scores:
    array = np.array(values, dtype=np.float64)
    return Scores(array, np.zeros(array.shape, bool) if protected is None else np.array(protected), layers, "test", "by hand")


def test_layer_scope_keeps_the_best_of_each_layer() -> None:
    plan = select(scores([[1, 9, 3, 7], [0.4, 0.1, 0.3, 0.2]]), from_fraction(SHAPE, 0.5, "layer"), SHAPE)
    assert plan.kept == {0: (1, 3), 1: (0, 2)}
    assert plan.fraction == 0.5


def test_global_scope_removes_the_lowest_of_the_model_down_to_the_floor() -> None:
    values = [[1, 9, 3, 7], [0.4, 0.1, 0.3, 0.2]]
    plan = select(scores(values), from_keep(SHAPE, 3, "global"), SHAPE)  # 6 of 8 stay: 0.1 and 0.2 go
    assert plan.kept == {0: (0, 1, 2, 3), 1: (0, 2)}
    plan = select(scores(values), from_keep(SHAPE, 2, "global"), SHAPE)  # 4 stay; the floor of 2 saves layer 1
    assert plan.kept == {0: (1, 3), 1: (0, 2)}


def test_no_data_goes_first_and_ties_keep_the_lower_id() -> None:
    plan = select(scores([[np.nan, -5, -6, np.nan], [1, 1, 1, 1]]), from_fraction(SHAPE, 0.5, "layer"), SHAPE)
    assert plan.kept == {0: (1, 2), 1: (0, 1)}


def test_groups_lose_equally() -> None:
    shape = Shape((0, 1), 8, 2, groups=2, top_groups=1)
    values = [[8, 7, 6, 5, 4, 3, 2, 1], [1, 2, 3, 4, 5, 6, 7, 8]]
    assert select(scores(values), from_fraction(shape, 0.5, "layer"), shape).kept == {0: (0, 1, 4, 5), 1: (2, 3, 6, 7)}
    # Global, 12 of 16: whole ranks go, two experts at a time, so every layer stays even over its groups.
    plan = select(scores([[80, 70, 60, 50, 40, 30, 20, 10], values[1]]), from_fraction(shape, 0.25, "global"), shape)
    assert plan.kept == {0: (0, 1, 2, 3, 4, 5, 6, 7), 1: (2, 3, 6, 7)}


def test_protected_experts_stay() -> None:
    protected = [[True, False, False, False], [False] * 4]
    plan = select(scores([[0, 9, 3, 7], [4, 3, 2, 1]], protected), from_fraction(SHAPE, 0.5, "layer"), SHAPE)
    assert plan.kept == {0: (0, 1), 1: (0, 1)}


def test_protection_never_breaks_the_floor_of_another_layer() -> None:
    shape = Shape((0, 1), 8, 2)
    protected = [[True] * 6 + [False] * 2, [False] * 8]
    values = [[1.0] * 8, [2.0] * 8]
    assert select(scores(values, protected), from_keep(shape, 4, "global"), shape).counts == {0: 6, 1: 2}
    with pytest.raises(ExciseError, match="6 protected super experts do not fit above the floor of the other layers"):
        select(scores(values, protected), from_keep(shape, 4, "global", floor=3), shape)


def test_groups_with_protection_and_missing_data() -> None:
    shape = Shape((0, 1), 8, 2, groups=2, top_groups=1)
    values = [[np.nan] * 4 + [4, 3, 2, 1], [1, 2, 3, 4, 5, 6, 7, 8]]
    protected = [[True] + [False] * 7, [False] * 8]
    plan = select(scores(values, protected), from_keep(shape, 6, "global"), shape)
    assert 0 in plan.kept[0]
    assert plan.counts == {0: 4, 1: 8}


def test_more_protected_than_kept_is_refused() -> None:
    with pytest.raises(ExciseError, match=r"3 super experts are protected, up to 3 where 2 may stay; .*protect_super_experts: false"):
        select(scores([[1] * 4, [1] * 4], [[True, True, True, False], [False] * 4]), from_fraction(SHAPE, 0.5, "layer"), SHAPE)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: from_fraction(SHAPE, 1.5, "layer"), r"prune\.fraction is 1\.5; it is the share .* between 0 and 1"),
        (lambda: from_fraction(SHAPE, 0.0, "layer"), r"prune\.fraction is 0\.0"),
        (lambda: from_fraction(SHAPE, 0.05, "layer"), "removes no expert: all 4 per layer would be kept"),
        (lambda: from_keep(SHAPE, 4, "layer"), "removes no expert"),
        (
            lambda: from_keep(SHAPE, 1, "layer"),
            r"keeps 1 of 4 experts per layer, but every token uses top_k = 2; keep at least 2 \(fraction ≤ 0\.5\)",
        ),
        (lambda: from_fraction(SHAPE, 0.75, "global"), "top_k = 2"),
        (lambda: from_keep(Shape((0,), 16, 2, 4, 2), 10, "layer"), "keeps 10 experts per layer, which 4 router groups cannot share evenly"),
        (lambda: from_keep(Shape((0,), 32, 2, 4, 2), 13, "layer"), r"use keep: 12 \(fraction 0\.625\) or keep: 16 \(fraction 0\.5\)"),
        (
            lambda: from_keep(Shape((0,), 8, 3, 2, 1), 4, "layer"),
            r"in 2 router groups, of which a token uses 1: too few for top_k = 3; keep at least 6",
        ),
        (lambda: from_keep(Shape((0,), 8, 2, 2, 2), 2, "layer"), "keep at least 4"),
        (lambda: from_keep(SHAPE, 3, "global", floor=1), r"prune\.floor is 1; it must lie between 2 and the mean number kept, 3"),
        (lambda: from_keep(SHAPE, 3, "global", floor=4), r"prune\.floor is 4"),
    ],
)
def test_impossible_budgets_are_refused_with_the_numbers(make, message: str) -> None:
    with pytest.raises(ExciseError, match=message):
        make()


@given(
    layers=st.integers(1, 5),
    per_group=st.integers(3, 8),
    groups=st.sampled_from([1, 2, 4]),
    scope=st.sampled_from(["layer", "global"]),
    fraction=st.floats(0.05, 0.95),
    seed=st.integers(0, 99),
)
def test_every_accepted_budget_is_met_exactly(layers: int, per_group: int, groups: int, scope, fraction: float, seed: int) -> None:
    shape = Shape(tuple(range(layers)), per_group * groups, 2, groups, max(1, groups // 2))
    try:
        budget = from_fraction(shape, fraction, scope)
    except ExciseError:
        return
    values = np.random.default_rng(seed).random((layers, shape.experts))
    plan = select(scores(values.tolist(), layers=shape.layers), budget, shape)
    assert plan.total == budget.total
    for ids in plan.kept.values():
        per = np.bincount(np.array(ids) // per_group, minlength=groups)
        assert len(set(per.tolist())) == 1
        assert len(ids) >= shape.smallest
    if scope == "layer":
        assert plan.uniform
