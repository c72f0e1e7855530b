"""Swaps accepted by the true KL, against a plain loop of whole forwards; their order by hand."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import experts
from criteria.budget import Budget, from_fraction
from criteria.by_name import resolve
from criteria.calibration import Calibration
from criteria.experiment_context import ExperimentContext
from criteria.measure import measure
from criteria.removal_room import Room
from criteria.scores import Scores
from criteria.selection import plan_for
from criteria.swap_costs import SetCosts, lowest_changes
from criteria.swap_moves import Border, Swap
from criteria.swap_search import SwapSearch
from criteria.text.halves import first_half
from criteria.text.windows import Windows
from experts.ablation import restricted
from experts.anatomy import Anatomy, dissect
from experts.errors import ExciseError
from experts.plan import Plan
from experts.shape import Shape
from tests.criteria.test_causal import Memory, setting
from tests.support import tiny
from tests.support.inputs import windows

Removed = frozenset[int]
Costs = Callable[[Removed], list[float]]  # KL of every window
EVERYTHING = "start=reap_sum,shortlist=1000,passes=40"


def found_by(made: ExperimentContext, settings: str) -> dict[str, np.ndarray]:
    measurement = resolve(f"causal_swaps:{settings}").measurement
    assert measurement is not None
    return measure(measurement, made)


def plan_of(made: ExperimentContext, score: np.ndarray) -> Plan:
    return plan_for(Scores(score, made.protected, made.shape.layers, "by hand", ""), made.budget, made.shape)


def removed_by(made: ExperimentContext, score: np.ndarray) -> Removed:
    kept = made.shape.marks(plan_of(made, score).kept)
    return frozenset(np.flatnonzero(~kept).tolist())


def divergence(made: ExperimentContext, removed: Removed) -> np.ndarray:
    """KL(unpruned ‖ pruned) of every window [N], float64, by whole forwards."""
    anatomy, tokens = made.anatomy, torch.from_numpy(made.windows.tokens)
    kept = np.ones(made.shape.total, dtype=bool)
    kept[list(removed)] = False
    ids = {
        layer: tuple(map(int, np.flatnonzero(row)))
        for layer, row in zip(made.shape.layers, kept.reshape(made.shape.num_layers, -1), strict=True)
    }
    before = torch.log_softmax(tiny.logits(anatomy.model, tokens).double(), -1)[:, :-1]
    with restricted(anatomy, Plan(made.shape.num_experts, ids)):
        after = torch.log_softmax(tiny.logits(anatomy.model, tokens).double(), -1)[:, :-1]
    return (before.exp() * (before - after)).sum(-1).mean(-1).numpy()


def plain_loop(made: ExperimentContext, removed: Removed) -> tuple[Removed, int]:
    """Try every swap by whole forwards; make the best that help in both halves, one layer each."""
    half = first_half(made.windows, "")

    def falls(change: np.ndarray) -> bool:
        return bool(change[half].mean() < 0 and change[~half].mean() < 0)

    def allowed(back: int, out: int) -> bool:
        if back // 8 == out // 8:
            return True
        kept = 8 - sum(expert // 8 == out // 8 for expert in removed)
        return made.budget.scope == "global" and kept > made.budget.floor

    count = 0
    while True:
        now, better = divergence(made, removed), []
        for back in removed:
            for out in set(range(made.shape.total)) - removed:
                if allowed(back, out):
                    change = divergence(made, removed - {back} | {out}) - now
                    better += [(float(change.mean()), back, out)] if falls(change) else []
        touched: set[int] = set()
        for _, back, out in sorted(better):
            if {back // 8, out // 8} & touched:
                continue
            touched |= {back // 8, out // 8}
            after = divergence(made, removed - {back} | {out})
            if not falls(after - now):
                break
            removed, now, count = removed - {back} | {out}, after, count + 1
        if not better:
            return removed, count


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_equals_a_plain_loop_of_whole_forwards(scope: str) -> None:
    anatomy = dissect(tiny.build("olmoe"))
    made = setting(anatomy, windows(4, 10), Budget(12, scope, 3, ""))  # type: ignore[arg-type]
    found = found_by(made, EVERYTHING)
    start = removed_by(made, resolve("reap_sum").score(made.statistics))
    expected, count = plain_loop(made, start)
    assert count > 2
    assert removed_by(made, found["score"]) == expected
    assert len(found["trace"]) == count
    half = first_half(made.windows, "")
    for place, removed in ((0, start), (-1, expected)):
        by_forwards = divergence(made, removed)
        np.testing.assert_allclose(
            found["divergence"][place], [by_forwards[half].mean(), by_forwards[~half].mean()], atol=1e-6
        )


@pytest.mark.parametrize("family", ["olmoe", "deepseek_v3", "gpt_oss"])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_never_worse_than_its_start_on_its_own_text(family: str, scope: str) -> None:
    """With few measurements, whatever the ranking at the start; groups stay even, protected experts stay."""
    anatomy = dissect(tiny.build(family))
    shape = anatomy.shape
    protected = np.zeros((len(anatomy.layers), shape.num_experts), dtype=bool)
    protected[0, [0, 5]] = True
    total = shape.num_experts * len(anatomy.layers) // 2
    smallest = max(shape.top_k, 4 if shape.groups > 1 else 0)
    made = setting(anatomy, windows(4, 12), Budget(total, scope, smallest, ""), protected=protected)  # type: ignore[arg-type]
    moved = 0
    for start in ("reversed:reap_sum", "random"):
        found = found_by(made, f"start={start},shortlist=6,passes=3")
        plan = plan_of(made, found["score"])  # checks counts, floors and router groups
        assert {0, 5} <= set(plan.kept[made.shape.layers[0]])
        before = divergence(made, removed_by(made, resolve(start).score(made.statistics)))
        after = divergence(made, removed_by(made, found["score"]))
        half = first_half(made.windows, "")
        assert after[half].mean() <= before[half].mean() + 1e-9
        assert after[~half].mean() <= before[~half].mean() + 1e-9
        assert (np.diff(found["divergence"], axis=0) < 0).all()
        moved += len(found["trace"])
    assert moved


def test_units_of_several_experts_keep_the_counts_of_their_layers() -> None:
    """multiple_of in scope global: the plan of the score is the removed set, layer by layer as many."""
    anatomy = dissect(tiny.build("olmoe"))
    made = setting(anatomy, windows(4, 12), Budget(12, "global", 4, "", multiple=2))
    search = SwapSearch(made, "random", 0)
    before = search.removed.reshape(3, 8).sum(axis=1)
    while search.passes < 5 and search.pass_over(50):
        pass
    assert search.trace
    np.testing.assert_array_equal(search.removed.reshape(3, 8).sum(axis=1), before)
    assert removed_by(made, search.score()) == frozenset(np.flatnonzero(search.removed).tolist())


# The order of the shortlists, by hand.


def border(scope: str, ranked: list[float], total: int, floor: int = 1, **changes: Any) -> Border:
    shape = Shape((0, 1), 4, 1)
    protected = np.zeros((2, 4), dtype=bool)
    protected[1, 3] = True
    room = Room(shape, Budget(total, scope, floor, "", **changes), protected)  # type: ignore[arg-type]
    return Border(room, np.array(ranked))


RANKED = [0.4, 0.1, 0.3, 0.2, 5.0, 8.0, 7.0, 6.0]
REMOVED = np.array([0, 1, 0, 1, 1, 0, 0, 1], dtype=bool)  # the lower half of each layer


def test_the_nearest_to_the_border_come_first() -> None:
    """Layer 0 keeps 0, 2 and removes 3, 1; layer 1 keeps 5, 6 and removes 7, 4: best of the removed first."""
    layers = border("layer", RANKED, 4)
    expected = [(3, 2), (3, 0), (1, 2), (1, 0), (7, 6), (7, 5), (4, 6), (4, 5)]
    assert layers.shortlist(REMOVED, {}, 0, 9) == expected
    assert layers.shortlist(REMOVED, {}, 0, 2) == [(3, 2), (3, 0), (7, 6), (7, 5)]


def test_in_scope_global_layers_trade_down_to_the_floor() -> None:
    """Of all: 7, 4, 3, 1 are removed in falling order, 2, 0, 6, 5 are kept in rising order."""
    whole = border("global", RANKED, 4)
    assert whole.shortlist(REMOVED, {}, 0, 6) == [(7, 2), (7, 0), (4, 2), (7, 6), (4, 0), (3, 2)]
    at_floor = border("global", RANKED, 4, floor=2)
    assert at_floor.shortlist(REMOVED, {}, 0, 4) == [(7, 6), (3, 2), (7, 5), (4, 6)]
    units = border("global", RANKED, 4, multiple=2)
    assert units.shortlist(REMOVED, {}, 0, 3) == [(3, 2), (7, 6), (3, 0)]


def test_what_helped_before_comes_first_and_what_is_known_last() -> None:
    """Measured before a swap was accepted: again. Measured since: not again. Impossible now: never."""
    known: dict[Swap, tuple[float, int]] = {
        (1, 0): (-0.2, 0),
        (3, 2): (0.1, 0),
        (3, 0): (-0.1, 1),
        (0, 2): (-9.0, 0),
    }
    layers = border("layer", RANKED, 4)
    assert layers.shortlist(REMOVED, known, 1, 9)[:3] == [(1, 0), (1, 2), (3, 2)]
    protected = np.array([0, 1, 0, 1, 1, 1, 0, 0], dtype=bool)
    assert all(out != 7 for _, out in layers.shortlist(protected, known, 1, 9))


# What is accepted, with a KL that is made up.


def search_with(
    costs: Callable[[frozenset[int]], list[float]], monkeypatch: pytest.MonkeyPatch
) -> SwapSearch:
    """A search on a model of 3 layers, four windows; costs: removed experts -> KL of every window."""
    made = setting(dissect(tiny.build("olmoe")), windows(4, 12, domains=1))

    def of(_: SetCosts, sets: np.ndarray) -> np.ndarray:
        return np.array([costs(frozenset(np.flatnonzero(one).tolist())) for one in sets])

    monkeypatch.setattr(SetCosts, "of", of)
    return SwapSearch(made, "reap_sum", 0)


def test_a_gain_in_one_half_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows take turns in the halves. One swap gains most, in one half alone; another a little in both."""
    first = search_with(lambda _: [0.0] * 4, monkeypatch)
    lopsided, fair = first.border.shortlist(first.removed, {}, 0, 16)[:2]
    assert lopsided[0] == fair[0]

    def costs(removed: Removed) -> list[float]:
        if lopsided[0] in removed:
            return [1.0, 1.0, 1.0, 1.0]
        return [0.0, 1.001, 0.0, 1.001] if lopsided[1] in removed else [0.9, 1.0, 1.0, 0.99]

    search = search_with(costs, monkeypatch)
    assert search.pass_over(2)
    assert [row[1:] for row in search.trace] == [[*divmod(fair[0], 8), *divmod(fair[1], 8)]]
    assert search.divergence == [[1.0, 1.0], [0.95, 0.995]]
    assert search.measured == 6 + 1


def test_a_swap_has_to_help_on_top_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone each of three helps; the second harms after the first, the third is made in a later pass."""
    begun = search_with(lambda _: [0.0] * 4, monkeypatch)
    swaps = begun.border.shortlist(begun.removed, {}, 0, 1)
    start = frozenset(np.flatnonzero(begun.removed).tolist())
    assert [back // 8 for back, _ in swaps] == [0, 1, 2]
    gains = dict(zip((back for back, _ in swaps), (0.3, 0.2, 0.1), strict=True))

    def costs(removed: Removed) -> list[float]:
        back = start - removed
        cost = 1.0 - sum(gains.get(expert, 0.0) for expert in back)
        return [cost + 0.5 * ({swaps[0][0], swaps[1][0]} <= back)] * 4

    search = search_with(costs, monkeypatch)
    assert search.pass_over(1)
    assert [row[1] for row in search.trace] == [0]
    while search.passes < 9 and search.pass_over(64):
        pass
    assert [row[1] for row in search.trace] == [0, 2]
    assert search.divergence[-1] == pytest.approx([0.6, 0.6])
    assert search.passes < 9, "it ends where nothing is left to measure"


# Interruptions, streamed models, refusals.


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_ends_alike_wherever_it_was_interrupted(scope: str) -> None:
    made = setting(dissect(tiny.build("olmoe")), windows(4, 12), Budget(12, scope, 3, ""))  # type: ignore[arg-type]
    made = replace(made, partial=Memory())  # type: ignore[arg-type]
    settings = "start=random,shortlist=8,passes=5"
    whole, kept = found_by(made, settings), made.partial.written  # type: ignore[attr-defined]
    assert len(kept) == 5
    assert len(whole["trace"]) > 2
    for state in kept:
        after = replace(made, partial=Memory(state))  # type: ignore[arg-type]
        again = found_by(after, settings)
        assert len(after.partial.written) < 5  # type: ignore[attr-defined]
        assert all(np.array_equal(again[name], whole[name]) for name in whole)


def test_streamed_layers_give_the_same_bytes(tmp_path: Path) -> None:
    folder = tiny.save(tiny.build("olmoe"), tmp_path / "model")
    found = []
    for memory in ("resident", "streamed"):
        anatomy: Anatomy = experts.load(folder, memory=memory).anatomy
        assert anatomy.weights.streamed == (memory == "streamed")
        made = setting(anatomy, windows(4, 12), Budget(12, "global", 3, ""))
        found.append(found_by(made, "start=random,shortlist=5,passes=3"))
    assert len(found[0]["trace"])
    assert all(np.array_equal(found[0][name], found[1][name]) for name in found[0])


def test_where_sets_differ_first() -> None:
    sets = np.zeros((4, 3, 2), dtype=bool)
    sets[1, 1, 0] = sets[2, 2, 1] = sets[2, 0, 1] = True
    np.testing.assert_array_equal(lowest_changes(sets), [2, 1, 0, 2])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("shortlist=0", "shortlist is 0; it has to be at least 1"),
        ("passes=0", "passes is 0; it has to be at least 1"),
        ("start=fisher", "causal_swaps: start=fisher is measured itself; use a criterion of observed"),
        ("start=causal_removal", "causal_swaps: start=causal_removal is measured itself"),
        ("start=reap_sun", "unknown criterion 'reap_sun'; did you mean reap_sum"),
        ("rounds=2", "no setting 'rounds=2'; it has start=…"),
    ],
)
def test_wrong_settings_are_refused_by_name(settings: str, message: str) -> None:
    """Before anything is calibrated."""
    with pytest.raises(ExciseError, match=message):
        resolve(f"causal_swaps:{settings}")


def test_what_cannot_be_searched_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    anatomy = dissect(tiny.build("olmoe"))
    one: Windows = windows(4, 12).select(np.array([0]))
    with pytest.raises(ExciseError, match="causal_swaps needs two windows or more"):
        found_by(setting(anatomy, one), "passes=1")
    with pytest.raises(ExciseError, match="causal_swaps needs two windows or more"):
        found_by(setting(anatomy, windows(4, 12)), "passes=1,windows=1")
    full = setting(anatomy, windows(4, 12), protected=np.ones((3, 8), dtype=bool))
    with pytest.raises(ExciseError, match="24 super experts are protected"):
        found_by(full, "passes=1")
    monkeypatch.setattr(
        "experts.effects.removal.window_effects", lambda clean, _: (clean.losses * torch.nan,) * 2
    )
    with pytest.raises(ExciseError, match=r"causal_swaps: a KL is not finite; is the model sound in torch"):
        found_by(setting(anatomy, windows(4, 12)), "passes=1")


def test_needs_a_budget(tmp_path: Path) -> None:
    model = experts.load(tiny.save(tiny.build("olmoe"), tmp_path / "model"))
    calibration = Calibration(model, windows(4, 12))
    with pytest.raises(ExciseError, match="causal_swaps: a search needs the budget"):
        calibration.scores([resolve("causal_swaps:passes=1")])
    budget = from_fraction(model.shape, 0.5, "layer")
    assert calibration.scores([resolve("causal_swaps:passes=1")], budget)[0].values.shape == (3, 8)
