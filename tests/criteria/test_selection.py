"""Budgets and plans: sizes, ties, groups, floors, protection, and what is refused."""

import itertools
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from criteria.budget import Budget, BudgetScope, deepest, from_counts, from_fraction, from_keep
from criteria.scores import Scores
from criteria.selection import check_protected, plan_for
from experts.errors import ExciseError
from experts.plan import Plan
from experts.shape import Shape
from validate.draw import equal_plans

SHAPE = Shape((0, 1), 4, 2)


def scores(
    values: list[list[float]], protected: list[list[bool]] | None = None, layers: tuple[int, ...] = (0, 1)
) -> Scores:
    array = np.array(values, dtype=np.float64)
    return Scores(
        array,
        np.zeros(array.shape, bool) if protected is None else np.array(protected),
        layers,
        "test",
        "by hand",
    )


def test_layer_scope_keeps_the_best_of_each_layer() -> None:
    plan = plan_for(scores([[1, 9, 3, 7], [0.4, 0.1, 0.3, 0.2]]), from_fraction(SHAPE, 0.5, "layer"), SHAPE)
    assert plan.kept == {0: (1, 3), 1: (0, 2)}
    assert plan.fraction == 0.5


def test_global_scope_removes_the_lowest_of_the_model_down_to_the_floor() -> None:
    values = [[1, 9, 3, 7], [0.4, 0.1, 0.3, 0.2]]
    plan = plan_for(scores(values), from_keep(SHAPE, 3, "global"), SHAPE)  # 6 of 8 stay: 0.1 and 0.2 go
    assert plan.kept == {0: (0, 1, 2, 3), 1: (0, 2)}
    plan = plan_for(
        scores(values), from_keep(SHAPE, 2, "global"), SHAPE
    )  # 4 stay; the floor of 2 saves layer 1
    assert plan.kept == {0: (1, 3), 1: (0, 2)}


def test_no_data_goes_first_and_ties_keep_the_lower_id() -> None:
    plan = plan_for(
        scores([[np.nan, -5, -6, np.nan], [1, 1, 1, 1]]), from_fraction(SHAPE, 0.5, "layer"), SHAPE
    )
    assert plan.kept == {0: (1, 2), 1: (0, 1)}


def test_groups_lose_equally() -> None:
    shape = Shape((0, 1), 8, 2, groups=2, top_groups=1)
    values = [[8, 7, 6, 5, 4, 3, 2, 1], [1, 2, 3, 4, 5, 6, 7, 8]]
    assert plan_for(scores(values), from_fraction(shape, 0.5, "layer"), shape).kept == {
        0: (0, 1, 4, 5),
        1: (2, 3, 6, 7),
    }
    # Global, 12 of 16: whole ranks go, two experts at a time, so every layer stays even over its groups.
    plan = plan_for(
        scores([[80, 70, 60, 50, 40, 30, 20, 10], values[1]]), from_fraction(shape, 0.25, "global"), shape
    )
    assert plan.kept == {0: (0, 1, 2, 3, 4, 5, 6, 7), 1: (2, 3, 6, 7)}


def test_protected_experts_stay() -> None:
    protected = [[True, False, False, False], [False] * 4]
    plan = plan_for(
        scores([[0, 9, 3, 7], [4, 3, 2, 1]], protected), from_fraction(SHAPE, 0.5, "layer"), SHAPE
    )
    assert plan.kept == {0: (0, 1), 1: (0, 1)}


def test_protection_never_breaks_the_floor_of_another_layer() -> None:
    shape = Shape((0, 1), 8, 2)
    protected = [[True] * 6 + [False] * 2, [False] * 8]
    values = [[1.0] * 8, [2.0] * 8]
    assert plan_for(scores(values, protected), from_keep(shape, 4, "global"), shape).counts == {0: 6, 1: 2}
    with pytest.raises(
        ExciseError, match="6 protected super experts do not fit above the floor of the other layers"
    ):
        plan_for(scores(values, protected), from_keep(shape, 4, "global", floor=3), shape)


def test_groups_with_protection_and_missing_data() -> None:
    shape = Shape((0, 1), 8, 2, groups=2, top_groups=1)
    values = [[np.nan] * 4 + [4, 3, 2, 1], [1, 2, 3, 4, 5, 6, 7, 8]]
    protected = [[True] + [False] * 7, [False] * 8]
    plan = plan_for(scores(values, protected), from_keep(shape, 6, "global"), shape)
    assert 0 in plan.kept[0]
    assert plan.counts == {0: 4, 1: 8}


def test_more_protected_than_kept_is_refused() -> None:
    with pytest.raises(
        ExciseError,
        match=r"3 super experts are protected, up to 3 where 2 may be kept; .*protect_super_experts: false",
    ):
        plan_for(
            scores([[1] * 4, [1] * 4], [[True, True, True, False], [False] * 4]),
            from_fraction(SHAPE, 0.5, "layer"),
            SHAPE,
        )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: from_fraction(SHAPE, 1.5, "layer"),
            r"fraction is 1\.5; it is the share .* between 0 and 1",
        ),
        (lambda: from_fraction(SHAPE, 0.0, "layer"), r"fraction is 0\.0"),
        (lambda: from_fraction(SHAPE, 0.05, "layer"), "removes no expert: all 4 per layer would be kept"),
        (lambda: from_keep(SHAPE, 4, "layer"), "removes no expert"),
        (
            lambda: from_keep(SHAPE, 1, "layer"),
            (
                r"keeps 1 of 4 experts per layer, but every token uses top_k "
                r"= 2; keep at least 2 \(fraction ≤ 0\.5\)"
            ),
        ),
        (lambda: from_fraction(SHAPE, 0.75, "global"), "top_k = 2"),
        (
            lambda: from_keep(Shape((0,), 16, 2, 4, 2), 10, "layer"),
            "keeps 10 experts per layer, which 4 router groups cannot share evenly",
        ),
        (
            lambda: from_keep(Shape((0,), 32, 2, 4, 2), 13, "layer"),
            r"use keep: 12 \(fraction 0\.625\) or keep: 16 \(fraction 0\.5\)",
        ),
        (
            lambda: from_keep(Shape((0,), 8, 3, 2, 1), 4, "layer"),
            r"in 2 router groups, of which a token uses 1: too few for top_k = 3; keep at least 6",
        ),
        (lambda: from_keep(Shape((0,), 8, 2, 2, 2), 2, "layer"), "keep at least 4"),
        (
            lambda: from_keep(SHAPE, 3, "global", floor=1),
            r"floor is 1; it must lie between 2 and the mean number kept, 3",
        ),
        (lambda: from_keep(SHAPE, 3, "global", floor=4), r"floor is 4"),
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
def test_every_accepted_budget_is_met_exactly(
    layers: int, per_group: int, groups: int, scope, fraction: float, seed: int
) -> None:
    shape = Shape(tuple(range(layers)), per_group * groups, 2, groups, max(1, groups // 2))
    try:
        budget = from_fraction(shape, fraction, scope)
    except ExciseError:
        return
    values = np.random.default_rng(seed).random((layers, shape.num_experts))
    plan = plan_for(scores(values.tolist(), layers=shape.layers), budget, shape)
    assert plan.total == budget.total
    for ids in plan.kept.values():
        per = np.bincount(np.array(ids) // per_group, minlength=groups)
        assert len(set(per.tolist())) == 1
        assert len(ids) >= shape.smallest
    if scope == "layer":
        assert plan.uniform


# Multiples, and counts by hand.

WIDE = Shape((3, 5, 8), 12, 2)


def test_counts_that_divide() -> None:
    """Layer: 12 − 5 = 7 rounds to 8.

    Global: of 36, 18 stay; in units of 4 that is 20, the floor of 2 becomes 4.
    """
    assert from_fraction(WIDE, 5 / 12, "layer", multiple=4).total == 3 * 8
    budget = from_fraction(WIDE, 0.5, "global", multiple=4)
    assert (budget.total, budget.floor) == (20, 4)
    values = [list(range(12)), [100 + i for i in range(12)], [50 + i for i in range(12)]]
    plan = plan_for(scores(values, layers=(3, 5, 8)), budget, WIDE)
    assert plan.counts == {3: 4, 5: 12, 8: 4}
    assert plan.kept[3] == (8, 9, 10, 11)
    assert "multiple_of=4" in plan.budget


def test_a_unit_is_worth_its_mean() -> None:
    """Units of two above a floor of two: (5, 5) of layer 0 is worth more than (9, 0) of layer 1, though 9 is
    the best single one.
    """
    shape = Shape((0, 1), 4, 2)
    plan = plan_for(scores([[7, 7, 5, 5], [10, 10, 9, 0]]), from_keep(shape, 3, "global", multiple=2), shape)
    assert plan.counts == {0: 4, 1: 2}


@given(st.integers(0, 10**6), st.sampled_from([1, 2, 3, 4]), st.floats(0.1, 0.6))
def test_global_counts_always_divide(seed: int, multiple: int, fraction: float) -> None:
    values = np.random.default_rng(seed).normal(size=(3, 12)).tolist()
    budget = from_fraction(WIDE, fraction, "global", multiple=multiple)
    plan = plan_for(scores(values, layers=(3, 5, 8)), budget, WIDE)
    assert all(count % multiple == 0 for count in plan.counts.values())
    assert plan.total == budget.total


def test_an_expert_count_that_is_no_multiple_itself() -> None:
    """Of 10 experts in units of 4 a layer keeps 8 at most."""
    shape = Shape((0, 1), 10, 2)
    plan = plan_for(
        scores([[i + 100.0 for i in range(10)], list(range(10))]),
        from_keep(shape, 6, "global", multiple=4),
        shape,
    )
    assert plan.counts == {0: 8, 1: 4}


def test_what_multiple_of_changes_is_said() -> None:
    """9 of 10 experts in units of 4 are 8 in either scope; a plan keeps what its budget says."""
    shape = Shape((0, 1), 10, 2)
    scopes: tuple[BudgetScope, ...] = ("layer", "global")
    for scope in scopes:
        budget = from_keep(shape, 9, scope, multiple=4)
        assert budget.total == 16
        assert (
            budget.notes(2)[0]
            == f"keep=9 scope={scope} multiple_of=4 keeps 16 experts in all, 18 without multiple_of"
        )
        assert plan_for(scores([list(range(10))] * 2), budget, shape).total == 16
    assert from_keep(shape, 8, "layer", multiple=4).notes(2) == []
    assert from_keep(shape, 7, "global").notes(2) == []
    odd = (
        "layers keep 4, 6 experts, not a multiple of 8, which expert-parallel "
        "serving may require (prune.multiple_of: 8)"
    )
    assert from_counts(shape, {0: 4, 1: 6}).notes(2) == [odd]


@pytest.mark.parametrize(
    ("keep", "scope", "multiple", "message"),
    [
        (
            5,
            "layer",
            16,
            r"multiple_of is 16: no number of experts from 2 \(fewest that can route\) to 10 divides by it",
        ),
        (5, "global", 16, r"multiple_of is 16: no number of experts from 2"),
        (2, "layer", 8, "multiple_of=8 keeps 0 of 10 experts per layer"),
        (
            2,
            "global",
            8,
            "multiple_of=8 keeps 4 experts per layer, and the fewest that can route are 8; keep more",
        ),
    ],
)
def test_multiples_that_cannot_be(keep: int, scope: BudgetScope, multiple: int, message: str) -> None:
    with pytest.raises(ExciseError, match=message):
        from_keep(Shape((0, 1), 10, 2), keep, scope, multiple=multiple)


def test_counts_by_hand() -> None:
    budget = from_counts(WIDE, {3: 4, 8: 6})
    assert (budget.total, budget.counts) == (22, (4, 12, 6))
    values = [list(range(12))] * 3
    plan = plan_for(scores(values, layers=(3, 5, 8)), budget, WIDE)
    assert plan.counts == {3: 4, 5: 12, 8: 6}
    assert plan.kept[8] == (6, 7, 8, 9, 10, 11)
    assert plan.budget == "keep=3:4,8:6"


@pytest.mark.parametrize(
    ("counts", "multiple", "message"),
    [
        ({4: 6}, 1, r"keep names layer 4; the MoE layers are \[3, 5, 8\]"),
        ({3: 13}, 1, "layer 3 is to keep 13 experts and has 12"),
        ({3: 1}, 1, "layer 3 is to keep 1 experts; routing needs at least 2"),
        ({3: 6}, 4, r"not a multiple of multiple_of = 4"),
        ({3: 12}, 1, "removes no expert"),
    ],
)
def test_counts_by_hand_that_cannot_be(counts: dict[int, int], multiple: int, message: str) -> None:
    with pytest.raises(ExciseError, match=message):
        from_counts(WIDE, counts, multiple)


def test_multiples_and_router_groups() -> None:
    shape = Shape((0, 1), 8, 2, groups=2, top_groups=1)
    with pytest.raises(ExciseError, match=r"multiple_of is 3: 2 router groups keep equally many"):
        from_fraction(shape, 0.5, "layer", multiple=3)
    values = [[80, 70, 60, 50, 40, 30, 20, 10], [1, 2, 3, 4, 5, 6, 7, 8]]
    plan = plan_for(scores(values), from_fraction(shape, 0.25, "global", multiple=4), shape)
    assert plan.counts == {0: 8, 1: 4}


# What was promised is what is kept.


def drawn_budget(draw: st.DrawFn) -> tuple[Shape, Budget, np.ndarray]:
    """A shape, a budget of any kind, and protected experts; kinds that cannot be are drawn again."""
    groups = draw(st.sampled_from([1, 2]))
    shape = Shape(tuple(range(draw(st.integers(1, 4)))), groups * draw(st.integers(3, 7)), 2, groups, 1)
    multiple, scope = draw(st.sampled_from([1, 2, 3, 4])), draw(st.sampled_from(["layer", "global"]))
    kind, most = draw(st.sampled_from(["fraction", "keep", "counts"])), shape.num_experts
    try:
        if kind == "counts":
            named = draw(st.dictionaries(st.sampled_from(shape.layers), st.integers(1, most), min_size=1))
            budget = from_counts(shape, named, multiple)
        elif kind == "keep":
            floor = draw(st.none() | st.integers(1, most)) if scope == "global" else None
            budget = from_keep(shape, draw(st.integers(1, most)), scope, floor, multiple=multiple)
        else:
            budget = from_fraction(shape, draw(st.floats(0.05, 0.9)), scope, multiple=multiple)
    except ExciseError:
        budget = reject()
    marks = draw(
        st.lists(st.booleans(), min_size=len(shape.layers) * most, max_size=len(shape.layers) * most)
    )
    rare = draw(st.lists(st.sampled_from([0, 0, 0, 1]), min_size=len(marks), max_size=len(marks)))
    return shape, budget, (np.array(marks) & np.array(rare, bool)).reshape(len(shape.layers), most)


@settings(suppress_health_check=[HealthCheck.filter_too_much])
@given(st.composite(drawn_budget)(), st.integers(0, 99))
def test_every_promise_about_counts_is_kept(drawn: tuple[Shape, Budget, np.ndarray], seed: int) -> None:
    """multiple_of, floor, total, groups, counts by hand and protected experts; or it is refused before scores
    are known.
    """
    shape, budget, protected = drawn
    try:
        check_protected(protected, budget, shape)
    except ExciseError as refused:
        assert "protected" in str(refused)
        return
    values = np.random.default_rng(seed).random(protected.shape)
    plan = plan_for(scores(values.tolist(), protected.tolist(), shape.layers), budget, shape)
    counts = list(plan.counts.values())
    assert sum(counts) == budget.total
    assert all(count % budget.multiple == 0 and count >= budget.floor for count in counts)
    assert budget.counts is None or tuple(counts) == budget.counts
    for row, ids in enumerate(plan.kept.values()):
        assert set(np.flatnonzero(protected[row])) <= set(ids)
        assert (
            len(set(np.bincount(np.array(ids) * shape.groups // shape.num_experts, minlength=shape.groups)))
            == 1
        )
    for one in equal_plans(plan, shape, protected, 3, seed):
        assert one.total == plan.total
        shape.check_kept(one.kept)


def test_layers_that_are_not_named_count_too() -> None:
    """60 experts: a layer that keeps all of them keeps no multiple of 8, whatever the others keep."""
    shape = Shape((0, 1, 2), 60, 4)
    with pytest.raises(
        ExciseError,
        match=r"does not name layer 0, which so keeps all 60 experts, not a multiple of multiple_of = 8",
    ):
        from_counts(shape, {1: 48}, 8)
    assert from_counts(shape, {0: 56, 1: 48, 2: 56}, 8).counts == (56, 48, 56)
    assert from_counts(shape, {1: 48}, 12).counts == (60, 48, 60)
    assert from_counts(shape, {1: 47}).counts == (60, 47, 60)


def test_a_plan_that_breaks_a_promise_is_not_given_out() -> None:
    budget = from_keep(WIDE, 8, "global", floor=4, multiple=4)
    budget.check_kept([4, 8, 12])
    for counts in ([6, 8, 10], [0, 12, 12], [4, 8, 8]):
        with pytest.raises(
            ExciseError,
            match=r"promised 24 experts in all, at least 4 a layer, multiples of 4; the plan keeps",
        ):
            budget.check_kept(counts)
    with pytest.raises(ExciseError, match="please report it"):
        from_keep(WIDE, 8, "layer").check_kept([8, 7, 9])


# When are two budgets one?


def test_budgets_are_one_exactly_where_they_always_make_one_plan() -> None:
    """Some hundred budgets of three layers of six: equal `kept` is the same plan for all of 40 scores,
    another `kept` is not.
    """
    shape, scopes = Shape((0, 1, 2), 6, 2), ("layer", "global")
    asked = [
        lambda f=f, s=s, m=m: from_fraction(shape, f, s, multiple=m)
        for f in np.arange(0.1, 0.7, 0.04)
        for s in scopes
        for m in (1, 2)
    ]
    asked += [lambda k=k, f=f: from_keep(shape, k, "global", f) for k in range(2, 6) for f in (2, 3, 4)]
    asked += [lambda k=k: from_counts(shape, {0: k, 1: k, 2: k}) for k in range(2, 6)] + [
        lambda: from_counts(shape, {1: 4})
    ]
    budgets = []
    for make in asked:
        with suppress(ExciseError):
            budgets.append(make())
    tables = [
        scores(np.random.default_rng(seed).random((3, 6)).tolist(), layers=(0, 1, 2)) for seed in range(40)
    ]
    made = {budget: tuple(plan_for(table, budget, shape).digest for table in tables) for budget in budgets}
    assert len(budgets) > 60
    for one, other in itertools.combinations(made, 2):
        assert (one.kept(shape) == other.kept(shape)) == (made[one] == made[other]), (one, other)


def test_which_budgets_are_one() -> None:
    shape, single = Shape((0, 1), 16, 4), Shape((0,), 16, 4)

    def kept(budget: Budget, of: Shape = shape) -> object:
        return budget.kept(of)

    half = from_fraction(shape, 0.5, "layer")
    assert (
        kept(from_fraction(shape, 0.51, "layer"))
        == kept(half)
        == kept(from_keep(shape, 8, "layer"))
        == kept(from_counts(shape, {0: 8, 1: 8}))
    )
    assert kept(from_fraction(shape, 0.56, "layer")) != kept(half)
    everywhere = from_fraction(shape, 0.5, "global")
    assert kept(everywhere) != kept(half), "the scores decide where"
    assert kept(from_fraction(shape, 0.5, "global", floor=6)) != kept(everywhere)
    assert kept(from_fraction(shape, 0.5, "global", floor=8)) == kept(half), (
        "every layer at its floor: nothing to decide"
    )
    assert kept(from_fraction(shape, 0.75, "global")) == kept(from_keep(shape, 4, "layer"))
    assert kept(from_fraction(single, 0.5, "global"), single) == kept(
        from_fraction(single, 0.5, "layer"), single
    )


def test_the_deepest_budget_of_a_scope() -> None:
    budgets = [
        from_fraction(WIDE, fraction, scope) for fraction in (0.25, 0.5) for scope in ("layer", "global")
    ]  # type: ignore[arg-type]
    assert deepest(budgets) == {"layer": budgets[2], "global": budgets[3]}


def test_protected_experts_that_leave_no_room_for_others_to_route() -> None:
    """Seven of layer 0 are protected; of nine in all, equal plans give the others the two that routing needs,
    not one.
    """
    shape = Shape((0, 1), 8, 2)
    protected = np.zeros((2, 8), bool)
    protected[0, :7] = True
    plan = Plan(8, {0: tuple(range(7)), 1: (0, 1)})
    assert [one.counts for one in equal_plans(plan, shape, protected, 3, 0)] == [{0: 7, 1: 2}] * 3
