"""The test against random plans as a whole: its false positives and its power on plans that were really
measured; both nulls; overlap.
"""

import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from experts.anatomy import Anatomy, dissect
from experts.plan import Plan
from experts.shape import Shape
from tests.support import tiny
from tests.support.inputs import uniform_plan, windows
from validate import null as null_module
from validate.draw import equal_plans, random_plans
from validate.measure import LOSS, Measure
from validate.null import Contest, evidence_of, with_verdicts
from validate.overlap import overlap, overlaps, stability
from validate.pairs import differences
from validate.rows import Evaluator, LossEvaluator
from validate.statistics import Correction, clustered
from validate.verdict import Null

LAYERS = (0, 1, 2)
SHAPE = Shape(LAYERS, 8, 3)
NOTHING = np.zeros((3, 8), dtype=bool)
ROUNDS = 400


@pytest.fixture(autouse=True)
def _quick_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of contests are simulated: their rates need fewer resamples than one printed interval, and no
    p against the full model.
    """
    monkeypatch.setattr(clustered, "RESAMPLES", 999)
    monkeypatch.setattr(null_module, "clustered_p", functools.partial(clustered.clustered_p, resamples=9))


# Plans.


def test_equal_plans_have_the_total_and_equal_counts() -> None:
    """13 of 24 in three layers: 4, 4 and 5, the odd one in another layer from plan to plan."""
    plan = Plan(8, {0: (0, 1, 2), 1: (0, 1, 2, 3, 4, 5), 2: (0, 1, 2, 3)})
    found = equal_plans(plan, SHAPE, NOTHING, 60, seed=0)
    assert {tuple(sorted(one.counts.values())) for one in found} == {(4, 4, 5)}
    assert {max(one.counts, key=one.counts.__getitem__) for one in found} == {0, 1, 2}
    assert len({one.digest for one in found}) > 50
    assert [one.digest for one in found] == [
        one.digest for one in equal_plans(plan, SHAPE, NOTHING, 60, seed=0)
    ]
    often = np.sum([[expert in one.kept[1] for expert in range(8)] for one in found], axis=0)
    assert often.min() > 15, "every expert has its chance"


def test_equal_plans_respect_protection_and_groups() -> None:
    protected = NOTHING.copy()
    protected[0, :6] = True  # more than its share of 4
    plan = Plan(8, {0: tuple(range(6)), 1: (0, 1, 2), 2: (0, 1, 2)})
    for one in equal_plans(plan, SHAPE, protected, 20, seed=0):
        assert set(range(6)) <= set(one.kept[0])
        assert one.total == 12
        assert sorted(one.counts.values()) == [3, 3, 6]
    grouped = Shape((1, 2), 8, 2, groups=2, top_groups=1)
    for one in equal_plans(
        Plan(8, {1: (0, 1, 2, 4, 5, 6), 2: (0, 1, 4, 5)}), grouped, NOTHING[:2], 20, seed=0
    ):
        assert one.total == 10
        for ids in one.kept.values():
            assert sum(i < 4 for i in ids) == sum(i >= 4 for i in ids)


def test_overlap_by_hand() -> None:
    """E = 8, keep 4: 2 shared of 4 is chance (4·4/8); all shared is 1; none is −1."""
    one = uniform_plan((0,), (0, 1, 2, 3))
    assert overlap(one, one) == 1
    assert overlap(one, uniform_plan((0,), (2, 3, 4, 5))) == 0
    assert overlap(one, uniform_plan((0,), (4, 5, 6, 7))) == -1
    # docs/methods.md 7, kept 6: (|A∩B|/kept − c)/(1 − c) with 5 shared and c = 6/8.
    assert overlap(
        uniform_plan((0,), (0, 1, 2, 3, 4, 5)), uniform_plan((0,), (1, 2, 3, 4, 5, 6))
    ) == pytest.approx((5 / 6 - 0.75) / 0.25)
    # Unequal counts: 2 of at most 2 shared is all there can be.
    assert overlap(uniform_plan((0,), (0, 1)), one) == 1
    randoms = random_plans(uniform_plan(LAYERS), SHAPE, NOTHING, 80, seed=0)
    assert np.mean(overlaps(randoms)[np.triu_indices(80, 1)]) == pytest.approx(0, abs=0.03), "chance is 0"
    assert stability(randoms[:1]) == (pytest.approx(np.nan, nan_ok=True),) * 2
    assert stability([one, one, uniform_plan((0,), (2, 3, 4, 5))]) == (pytest.approx(1 / 3), 0)


# False positives and power, on measured plans.


class Pool:
    """Random plans of one size that were all measured once; a simulated criterion and its null are drawn from
    them.
    """

    def __init__(self, anatomy: Anatomy, path: Path) -> None:
        self.evaluator = LossEvaluator(windows(12, 24), path, "k", batch=12)
        self.plans = random_plans(uniform_plan(LAYERS, (0, 1, 2, 3)), SHAPE, NOTHING, 240, seed=5)
        for plan in (None, *self.plans):
            self.evaluator.measure_plans([plan], anatomy)

    def draws(self, randoms: int) -> Iterator[Contest]:
        rng = np.random.default_rng(0)
        for _ in range(ROUNDS):
            chosen = [self.plans[i] for i in rng.choice(len(self.plans), randoms + 1, replace=False)]
            yield Contest(chosen[0], chosen[1], chosen[1:], "", "layer")

    def measure(self, evaluator: Evaluator | None = None) -> Measure:
        documents = np.arange(12)  # each window is a document
        return Measure(LOSS, "nats per token", evaluator or self.evaluator, self.evaluator.weights, documents)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return Pool(dissect(tiny.build("olmoe")), tmp_path_factory.mktemp("pool") / "losses.csv")


class Shifted(Evaluator):
    """The pool's losses, with one plan better by as many standard deviations of the random plans."""

    def __init__(self, pool: Pool, plan: Plan, by: float) -> None:
        self.pool, self.plan, self.by = pool, plan, by

    def values(self, plan: Plan | None) -> np.ndarray:
        return self.pool.evaluator.values(plan) - (self.by if plan is self.plan else 0.0)

    def measure(self) -> np.ndarray:
        raise AssertionError("everything is measured")


@pytest.mark.slow
@pytest.mark.parametrize("null", list(Null))
def test_false_positive_rate(pool: Pool, null: Null) -> None:
    """400 simulated criteria that are random, the whole rule (p and interval): at most 7 % beat random at α =
    .05.
    """
    verdicts = [
        with_verdicts([evidence_of(test, [pool.measure()], null, 0)], Correction.NONE, null)[0]
        .costs[0]
        .own.verdict
        for test in pool.draws(20)
    ]
    rate = {verdict: verdicts.count(verdict) / ROUNDS for verdict in set(verdicts)}
    print(f"{null}: {rate}")  # pytest -rP shows it
    assert rate.get("beats random", 0) <= 0.07
    assert rate.get("worse than random", 0) <= 0.07
    assert rate["not distinguishable"] < 1, "a test that never says anything has no false positives either"


@pytest.mark.slow
@pytest.mark.parametrize("null", list(Null))
def test_power_for_a_planted_effect(pool: Pool, null: Null) -> None:
    """A criterion better by the smallest detectable difference is found in about 80 % of the draws, one twice
    as good in nearly all.
    """
    found: dict[float, list[bool]] = {1.0: [], 2.0: []}
    for number, test in enumerate(pool.draws(20)):
        if number == 150:
            break
        plain = (
            with_verdicts([evidence_of(test, [pool.measure()], null, 0)], Correction.NONE, null)[0]
            .costs[0]
            .own
        )
        for factor, hits in found.items():
            shift = Shifted(pool, test.plan, factor * plain.smallest_detectable)
            judged = (
                with_verdicts([evidence_of(test, [pool.measure(shift)], null, 0)], Correction.NONE, null)[0]
                .costs[0]
                .own
            )
            hits.append(judged.verdict == "beats random")
    power = {factor: float(np.mean(hits)) for factor, hits in found.items()}
    print(f"{null}: {power}")  # pytest -rP shows it
    assert power[1.0] >= 0.65
    assert power[2.0] >= 0.97


@pytest.mark.slow
def test_holm_is_over_all_criteria(pool: Pool) -> None:
    """Twenty random criteria at once: the family hardly ever has a winner, where each alone would have one in
    21.
    """
    tests = list(pool.draws(20))[:200]
    evidence = [evidence_of(test, [pool.measure()], Null.NORMAL, 0) for test in tests]
    alone = [one.costs[0].own.verdict for one in with_verdicts(evidence, Correction.NONE, Null.NORMAL)]
    families = [
        with_verdicts(evidence[start : start + 20], Correction.HOLM, Null.NORMAL)
        for start in range(0, 200, 20)
    ]
    assert alone.count("beats random") > 0
    assert sum(any(one.costs[0].own.verdict == "beats random" for one in family) for family in families) <= 2


def test_pairs_of_the_same_plan_and_of_others(pool: Pool) -> None:
    one, other = (
        with_verdicts([evidence_of(test, [pool.measure()], Null.COUNTED, 0)], Correction.NONE, Null.COUNTED)[
            0
        ]
        for test in list(pool.draws(20))[:2]
    )
    same, different = (
        differences([one, one], [pool.measure()], 0)[0],
        differences([one, other], [pool.measure()], 0)[0],
    )
    assert "same experts" in same.compared.test.reason
    assert (same.compared.pair.same_plan, different.compared.pair.same_plan) == (True, False)
    assert not same.differ
    assert different.p_corrected == different.compared.test.p
    assert different.compared.difference == pytest.approx(one.costs[0].delta - other.costs[0].delta)
    assert (
        different.compared.interval.low <= different.compared.difference <= different.compared.interval.high
    )


@pytest.mark.slow
def test_what_is_detectable_after_holm(pool: Pool) -> None:
    """Twenty tests: the effect that is printed is found at α / 20, the first step of Holm; by counting 20
    plans nothing could be.
    """
    tests = list(pool.draws(20))[:100]
    evidence = [evidence_of(test, [pool.measure()], Null.NORMAL, 0) for test in tests]
    families = [
        with_verdicts(evidence[start : start + 20], Correction.HOLM, Null.NORMAL)
        for start in range(0, 100, 20)
    ]
    hits = []
    for test, one in zip(tests, (one for family in families for one in family), strict=True):
        own = one.costs[0].own
        assert (
            own.smallest_detectable
            > with_verdicts([one], Correction.NONE, Null.NORMAL)[0].costs[0].own.smallest_detectable
        )
        shift = Shifted(
            pool, test.plan, own.smallest_detectable + one.costs[0].delta - float(np.mean(own.values))
        )
        hits.append(evidence_of(test, [pool.measure(shift)], Null.NORMAL, 0).costs[0].own.p <= 0.05 / 20)
    assert np.mean(hits) >= 0.75, "a plan that is better by so much, on average"
    counted = with_verdicts(evidence[:20], Correction.HOLM, Null.COUNTED)
    assert all(np.isnan(one.costs[0].own.smallest_detectable) for one in counted)


def test_two_ends_alike(pool: Pool) -> None:
    """A criterion whose reverse costs the same says nothing, and the report says so."""
    test = next(iter(pool.draws(20)))
    same = Contest(test.plan, test.plan, test.randoms, "", "layer")
    found = with_verdicts(
        [evidence_of(same, [pool.measure()], Null.COUNTED, 0)], Correction.NONE, Null.COUNTED
    )[0].to_json()
    assert found["ends_alike"]
    assert found["ends_interval"] == [0, 0]
