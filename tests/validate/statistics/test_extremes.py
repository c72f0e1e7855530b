"""Every statistic on numbers as they come: cancelling, constant, next to nothing, enormous, few, missing.

A number or nan; never an error.
"""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats
from typer.testing import CliRunner

from prune.console.cli import app
from validate.agreement import spearman
from validate.statistics import clustered as clustered_module
from validate.statistics import (
    clustered_interval,
    clustered_p,
    clustered_share,
    cohens_d,
    needed_n,
    normal_p,
    normality_p,
    paired_t,
    permutation_p,
    smallest_detectable,
    smallest_detectable_d,
    spearman_within,
    standardized_effect,
    wilcoxon,
)

EDGES = [0.0, -0.0, 5e-324, 1e-310, 1e-160, 9e-18, 1e-9, 0.1, 0.2, -0.3, 1.0, 1e8, 1e160, 1.7e308, -1.7e308]
WILD = st.one_of(
    st.sampled_from([*EDGES, math.nan, math.inf]), st.floats(allow_nan=False, allow_infinity=False)
)
FEW = arrays.arrays(np.float64, st.integers(0, 9), elements=WILD)
CALM = arrays.arrays(np.float64, st.integers(4, 8), elements=st.floats(-10, 10).map(lambda x: round(x, 2)))


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clustered_module, "RESAMPLES", 199)


def is_p(value: float) -> bool:
    return math.isnan(value) or 0 <= value <= 1


@settings(deadline=None, max_examples=60)
@given(FEW)
def test_paired_statistics_of_anything(values: np.ndarray) -> None:
    assert is_p(paired_t(values).p)
    assert is_p(wilcoxon(values).p)
    for ddof in (0, 1):
        size = cohens_d(values, ddof)
        assert math.isnan(size.d) == (paired_t(values).reason != "")
        found = needed_n(size.d, 0.05 / 24)
        assert found is None or found >= 2


@settings(deadline=None, max_examples=60)
@given(FEW, st.integers(1, 3))
def test_statistics_over_documents_of_anything(values: np.ndarray, size: int) -> None:
    each, documents = np.ones(len(values)), np.arange(len(values)) // size
    interval = clustered_interval(values, each, documents)
    assert math.isnan(interval.low) == bool(interval.reason)
    assert math.isnan(interval.low) or interval.low <= interval.high
    assert is_p(clustered_p(values, each, documents, resamples=199).p)
    share, ends = clustered_share(values, values[::-1], each, documents)
    assert math.isnan(share) <= bool(ends.reason)


@settings(deadline=None, max_examples=150)
@given(WILD, FEW)
def test_statistics_of_random_plans_of_anything(value: float, null: np.ndarray) -> None:
    assert is_p(permutation_p(value, null))
    assert is_p(normal_p(value, null))
    assert is_p(normality_p(null))
    assert isinstance(standardized_effect(value, null), float)
    assert not smallest_detectable(null, 0.05) < 0


@settings(deadline=None, max_examples=60)
@given(FEW)
def test_rank_correlations_of_anything(values: np.ndarray) -> None:
    both = np.stack([values, values[::-1]])
    for rho in (*spearman(both, both[::-1]), spearman_within(both, both[::-1]).rho):
        assert math.isnan(rho) or abs(rho) <= 1 + 1e-12


@settings(deadline=None, max_examples=25)
@given(CALM)
def test_as_scipy_says_where_it_says_something(values: np.ndarray) -> None:
    if len(set(values)) < 2:
        return
    assert paired_t(values).p == pytest.approx(stats.ttest_1samp(values, 0).pvalue, rel=1e-12)
    assert wilcoxon(values).p == stats.wilcoxon(values).pvalue
    assert cohens_d(values).d == pytest.approx(np.mean(values) / np.std(values, ddof=1), rel=1e-12)
    t = (0.25 - values.mean()) / (values.std(ddof=1) * math.sqrt(1 + 1 / len(values)))
    assert normal_p(0.25, values) == pytest.approx(stats.t.cdf(t, len(values) - 1), rel=1e-12)
    assert normality_p(values) == stats.shapiro(values).pvalue


@settings(deadline=None, max_examples=40)
@given(CALM, st.sampled_from([1e-300, 1e-200, 1e200, 1e300]))
def test_the_unit_does_not_matter(values: np.ndarray, unit: float) -> None:
    """Nats or anything else: t, p and d are ratios."""
    if len(set(values)) < 2:
        return
    documents, each = np.arange(len(values)) // 2, np.ones(len(values))
    for one, other in (
        (paired_t(values).p, paired_t(values * unit).p),
        (cohens_d(values).d, cohens_d(values * unit).d),
    ):
        assert other == pytest.approx(one, rel=1e-9)
    assert normal_p(0.5 * unit, values * unit) == pytest.approx(normal_p(0.5, values), rel=1e-9)
    low, wide = (clustered_interval(numbers, each, documents) for numbers in (values, values * unit))
    assert (wide.low, wide.high) == (
        pytest.approx(low.low * unit, rel=1e-9),
        pytest.approx(low.high * unit, rel=1e-9),
    )
    assert clustered_p(values * unit, each, documents).p == clustered_p(values, each, documents).p


def test_the_interval_of_an_enormous_effect() -> None:
    """d = 1e6 at n = 3: d divided by the spread that two degrees of freedom leave, √(χ²/2); 95 % of simulated
    d ± their ends hold it.
    """
    found = cohens_d(np.array([1e6, 1e6 + 1.0, 1e6 - 1.0]))
    root = np.sqrt(np.random.default_rng(0).chisquare(2, 400_000) / 2)
    assert found.d == pytest.approx(1e6)
    assert (found.low / 1e6, found.high / 1e6) == (
        pytest.approx(np.quantile(root, 0.025), rel=0.02),
        pytest.approx(np.quantile(root, 0.975), rel=0.01),
    )


# Power.


@pytest.mark.parametrize("d", [9e-18, 1e-12, 1e-9, 1e-7, 1e-5])
def test_an_effect_that_takes_a_thousand_million_positions_is_none(d: float) -> None:
    assert needed_n(d, 0.0025) is None
    assert needed_n(-d, 0.0025) is None


@pytest.mark.parametrize("d", [1e-3, 0.1, 3.0, 1e3, 1e150])
def test_the_needed_number_is_the_first_that_suffices(d: float) -> None:
    found = needed_n(d, 0.0025)
    assert found is not None
    assert smallest_detectable_d(found, 0.0025) <= d * (1 + 1e-9)
    assert found == 2 or smallest_detectable_d(found - 1, 0.0025) > d


@pytest.mark.parametrize(("n", "alpha"), [(2, 1e-12), (2, 1e-9), (3, 1e-12), (10**8, 1e-6)])
def test_power_where_scipys_series_fails(n: int, alpha: float) -> None:
    """Simulated: T > c when Z > c·√(χ²/df) − shift; the other tail is nothing there."""
    shift, critical, df = (
        smallest_detectable_d(n, alpha) * math.sqrt(n),
        stats.t.ppf(1 - alpha / 2, n - 1),
        n - 1,
    )
    root = np.sqrt(np.random.default_rng(0).chisquare(df, 200_000) / df)
    assert np.mean(stats.norm.sf(critical * root - shift)) == pytest.approx(0.8, abs=0.005)


# What cancels proves nothing.


def test_differences_that_cancel_in_every_document_are_no_evidence() -> None:
    """0.1 + 0.2 − 0.3 is 5.6e-17 in every one of ten documents: that sign is rounding, not agreement."""
    values, documents = np.tile([0.1, 0.2, -0.3], 10), np.repeat(np.arange(10), 3)
    assert clustered_p(values, np.ones(30), documents).p == 1.0
    interval = clustered_interval(values, np.ones(30), documents)
    assert interval.low <= 0 <= interval.high


def test_random_plans_that_differ_by_rounding_have_no_spread() -> None:
    null = 0.5 + np.arange(20) * 1e-16
    assert math.isnan(normal_p(0.499, null))
    assert math.isnan(standardized_effect(0.499, null))


@pytest.mark.parametrize(
    "differences",
    [
        [0.1, 0.2, -0.3],
        [*np.linspace(0.1, 1, 100), *-np.linspace(0.1, 1, 100)],
        [1e-9, -1e-9, 1e-9, -1e-9, 1e-16, 0, 0],
        [5e-324, 1e-323, 0],
        [1e90, -1e90, 3e90, 1],
    ],
)
def test_an_audit_of_differences_that_cancel(differences: list[float], tmp_path: Path) -> None:
    rows = [f"0,a,{n},{value!r},0" for n, value in enumerate(map(float, differences))]
    (tmp_path / "p.csv").write_text("\n".join(["layer,criterion,sample,high_delta,low_delta", *rows]) + "\n")
    done = CliRunner().invoke(app, ["audit", "--positions", str(tmp_path / "p.csv"), "--quiet", "--json"])
    assert done.exit_code == 0, done.output
    assert not any(word in done.stdout for word in ("NaN", "Infinity")), "JSON has neither"
