"""Paired tests, corrections and power against hand-worked numbers, scipy, statsmodels and simulation."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.power import TTestPower

from validate.statistics import (
    Correction,
    clustered_p,
    cohens_d,
    corrected,
    documents_needed,
    mcnemar,
    needed_n,
    normal_p,
    normality_p,
    paired_t,
    random_plans_needed,
    resamples_for,
    share_positive,
    smallest_detectable_d,
    spearman_within,
    wilcoxon,
)

SAMPLE = np.random.default_rng(7).normal(0.2, 1.0, 60)
ONES = np.ones(60)


def test_t_and_d_by_hand() -> None:
    """Differences 1, 2, 3, 6: mean 3, sum of squares about it 14, sd √(14/3) (ddof 1) or √3.5 (ddof 0)."""
    differences = np.array([1.0, 2.0, 3.0, 6.0])
    assert paired_t(differences).statistic == pytest.approx(3 / (math.sqrt(14 / 3) / 2))
    assert cohens_d(differences, ddof=1).d == pytest.approx(3 / math.sqrt(14 / 3))
    assert cohens_d(differences, ddof=0).d == pytest.approx(3 / math.sqrt(3.5))
    assert cohens_d(differences, ddof=0).ddof == 0
    assert share_positive(np.array([1.0, -1.0, 0.0, 2.0])) == 0.5


def test_p_is_scipys() -> None:
    assert paired_t(SAMPLE).p == pytest.approx(
        stats.ttest_rel(SAMPLE + 5, np.full(60, 5.0)).pvalue, rel=1e-12
    )
    assert wilcoxon(SAMPLE).p == stats.wilcoxon(SAMPLE).pvalue
    assert (
        wilcoxon(np.array([1.0, 2.0, 3.0, 4.0])).p == 2 / 2**4
    )  # all positive: the most extreme of 16 sign patterns, both tails


@pytest.mark.slow
@pytest.mark.parametrize("ddof", [0, 1])
def test_the_interval_of_d_covers_it(ddof: int) -> None:
    """True d = .5 at n = 25, 1,000 simulated samples: 95 % of the intervals hold it."""
    rng, inside = np.random.default_rng(0), 0
    for _ in range(1000):
        found = cohens_d(rng.normal(0.5, 1.0, 25), ddof)
        scale = math.sqrt((25 - ddof) / 24)
        inside += found.low <= 0.5 * scale <= found.high
    assert inside / 1000 == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize(
    ("differences", "reason"),
    [
        ([], "n = 0"),
        ([1.0], "n = 1"),
        ([0.0, 0.0, 0.0], "all differences are 0"),
        ([math.nan, 1.0, 2.0], "1 of 3 differences are not finite"),
        ([math.inf, 1.0], "1 of 2 differences are not finite"),
    ],
)
def test_degenerate_differences_give_nan_and_a_reason(differences: list[float], reason: str) -> None:
    values = np.array(differences)
    each, documents = np.ones(len(values)), np.arange(len(values))
    for found in (paired_t(values), wilcoxon(values), clustered_p(values, each, documents)):
        assert math.isnan(found.p)
        assert reason in found.reason
    size = cohens_d(values)
    assert math.isnan(size.d)
    assert math.isnan(size.low)
    assert reason in size.reason


@pytest.mark.parametrize("values", [[0.3, 0.3, 0.3], [0.1, 0.1 + 1e-17, 0.1], [2.0, 2.0]])
def test_no_spread_is_no_certainty(values: list[float]) -> None:
    """t would be infinite and p 0: three equal numbers prove nothing of the kind."""
    assert math.isnan(paired_t(np.array(values)).p)
    assert "no spread" in cohens_d(np.array(values)).reason
    assert wilcoxon(np.array(values)).p >= 0.25


def test_an_interval_too_far_out_says_so() -> None:
    found = cohens_d(np.array([1.0, 1.0 + 1e-5, 1.0 - 1e-5]))
    assert found.d > 1e4
    assert (math.isfinite(found.low) and math.isfinite(found.high)) or found.reason


# Order inside the active set.


def test_spearman_within_is_the_mean_of_scipys() -> None:
    rng = np.random.default_rng(1)
    scores, effects = rng.integers(0, 4, (30, 5)).astype(float), rng.normal(size=(30, 5))
    scores[3] = 2.0  # says nothing there
    expected = [
        stats.spearmanr(one, other).statistic
        for number, (one, other) in enumerate(zip(scores, effects, strict=True))
        if number != 3
    ]
    found = spearman_within(scores, effects)
    assert found.rows == 29
    assert found.rho == pytest.approx(np.mean(expected), abs=1e-12)


def test_spearman_within_without_order() -> None:
    assert "all equal" in spearman_within(np.ones((4, 3)), np.random.default_rng(0).random((4, 3))).reason
    assert "at least two active" in spearman_within(np.ones((4, 1)), np.ones((4, 1))).reason
    assert spearman_within(np.array([[-np.inf, 1.0, 2.0]]), np.array([[0.1, 0.2, 0.3]])).rho == pytest.approx(
        1.0
    )  # an expert without score


# Documents.


def test_clustered_p_by_enumeration() -> None:
    """Four documents, 16 sign patterns, each tried by hand."""
    differences, documents = np.array([0.5, 0.1, 0.4, 0.3, -0.2, 0.6]), np.array([0, 0, 1, 2, 2, 3])
    weights = np.array([1.0, 2.0, 1.0, 1.0, 3.0, 2.0])
    sums = np.array([0.7, 0.4, -0.3, 1.2])
    totals = [abs(np.dot(signs, sums)) for signs in itertools.product((1, -1), repeat=4)]
    found = clustered_p(differences, weights, documents)
    assert found.p == np.mean(np.array(totals) >= abs(sums.sum()) - 1e-12)
    assert found.statistic == pytest.approx(sums.sum() / weights.sum())


def test_clustered_p_keeps_alpha_where_positions_of_a_document_are_alike() -> None:
    """Eight positions share their document's error: the t-test over positions finds effects that are not
    there, the clustered one does not.
    """
    rng, clusters, documents, naive = np.random.default_rng(0), np.repeat(np.arange(20), 8), [], []
    for seed in range(300):
        rows = rng.normal(size=20)[clusters] + 0.5 * rng.normal(size=160)
        documents.append(clustered_p(rows, np.ones(160), clusters, seed, resamples=999).p <= 0.05)
        naive.append(paired_t(rows).p <= 0.05)
    assert np.mean(documents) <= 0.08
    assert np.mean(naive) > 0.3


def test_one_document_gives_no_p() -> None:
    assert "one document only" in clustered_p(np.array([1.0, 2.0]), np.ones(2), np.array([0, 0])).reason


# Items answered right and wrong.


def test_mcnemar_is_a_binomial_test() -> None:
    one = np.array([True] * 9 + [False] * 2 + [True] * 30)
    other = np.array([False] * 9 + [True] * 2 + [True] * 30)
    assert mcnemar(one, other).p == pytest.approx(stats.binomtest(9, 11, 0.5).pvalue)
    assert mcnemar(one, other).statistic == 9
    assert "no item is answered differently" in mcnemar(one, one).reason
    assert math.isnan(mcnemar(np.array([], bool), np.array([], bool)).p)


# Many tests.


def test_corrections_by_hand() -> None:
    p = [0.01, 0.04, 0.03, 0.005]
    np.testing.assert_allclose(corrected(p, Correction.BONFERRONI), [0.04, 0.16, 0.12, 0.02])
    np.testing.assert_allclose(
        corrected(p, Correction.HOLM), [0.03, 0.06, 0.06, 0.02]
    )  # ×4 the smallest, ×3 the next, never falling
    np.testing.assert_allclose(corrected(p, Correction.BENJAMINI_HOCHBERG), [0.02, 0.04, 0.04, 0.02])
    np.testing.assert_array_equal(corrected(p, Correction.NONE), p)


def test_a_test_that_failed_still_counts() -> None:
    found = corrected([0.01, math.nan], Correction.HOLM)
    assert found[0] == 0.02
    assert math.isnan(found[1])
    assert len(corrected([], Correction.HOLM)) == 0


# Power.


@pytest.mark.parametrize(("n", "alpha"), [(10, 0.05), (30, 0.01), (200, 0.0025), (2000, 0.05)])
def test_smallest_d_is_statsmodels(n: int, alpha: float) -> None:
    d = smallest_detectable_d(n, alpha)
    assert TTestPower().power(d, n, alpha) == pytest.approx(0.8, abs=1e-9)
    assert needed_n(d, alpha) in (n, n + 1)


def test_published_power() -> None:
    """docs/methods.md 3: 80 % power at α = .0025 and n = 200 needs d ≥ .27; d = .10 needs about 1,500
    positions.
    """
    assert smallest_detectable_d(200, 0.0025) == pytest.approx(0.27, abs=0.01)
    assert needed_n(0.10, 0.0025) == pytest.approx(1500, abs=10)


def test_small_samples_have_honest_power() -> None:
    """Three pairs at α = .0025: simulated, where statsmodels' power is not a number."""
    d = smallest_detectable_d(3, 0.0025)
    draws = np.random.default_rng(0).normal(d, 1.0, (20_000, 3))
    t = draws.mean(axis=1) / (draws.std(axis=1, ddof=1) / math.sqrt(3))
    assert np.mean(np.abs(t) > stats.t.ppf(1 - 0.0025 / 2, 2)) == pytest.approx(0.8, abs=0.01)
    assert math.isnan(smallest_detectable_d(1, 0.05))
    assert needed_n(0.0, 0.05) is None
    assert needed_n(math.nan, 0.05) is None


def test_how_many_are_needed() -> None:
    assert random_plans_needed(1, 0.05) == 19
    assert random_plans_needed(16, 0.05) == 319
    assert 16 / (319 + 1) <= 0.05 < 16 / 319
    assert documents_needed(1, 0.05) == 6
    assert 2 / 2**6 <= 0.05 < 2 / 2**5
    assert 2 / (resamples_for(1000, 0.05) + 1) * 1000 < 0.05


# One plan against random plans, by a t distribution.


@pytest.mark.slow
def test_normal_p_is_a_prediction() -> None:
    """20,000 simulated nulls: one more draw is below the 5 % point in 5 % of them; it reaches below 1 / (R +
    1).
    """
    draws = np.random.default_rng(0).normal(size=(20_000, 21))
    rate = np.mean([normal_p(row[0], row[1:]) <= 0.05 for row in draws])
    assert rate == pytest.approx(0.05, abs=0.005)
    null = np.random.default_rng(0).normal(size=20)
    assert normal_p(-9.0, null) < 1e-6
    assert normal_p(0.0, null) + normal_p(-0.0, -null) == pytest.approx(1.0)
    assert normality_p(null) > 0.05 > normality_p(np.r_[null, 50.0])


@pytest.mark.parametrize(
    ("value", "null"), [(1.0, [2.0]), (1.0, [2.0, 2.0]), (math.nan, [1.0, 2.0]), (1.0, [math.nan, 2.0, 3.0])]
)
def test_normal_p_of_nothing(value: float, null: list[float]) -> None:
    assert math.isnan(normal_p(value, np.array(null)))
