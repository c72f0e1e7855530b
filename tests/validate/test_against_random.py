"""The test against chance: rig, random plans, p, intervals, verdict, raw rows; each against something
independent.
"""

import csv
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from experts.ablation import restricted
from experts.anatomy import Anatomy, dissect
from experts.decoder import Part
from experts.effects.removal import RemovalBranch
from experts.errors import ExciseError
from experts.plan import Plan
from experts.shape import Shape
from tests.support import tiny
from tests.support.inputs import uniform_plan, windows
from validate import rig
from validate.draw import random_plans
from validate.evidence import Evidence
from validate.loss import window_losses
from validate.measure import LOSS, Measure
from validate.null import Contest, evidence_of, with_verdicts
from validate.rig import Check, cutting
from validate.rig import losses as rig_losses
from validate.rig.effects import LocalProbe, PlantedProbe
from validate.rig.losses import LossProbe
from validate.rig.probe import run_probes
from validate.rows import LossEvaluator
from validate.statistics import (
    Correction,
    clustered_interval,
    permutation_p,
    smallest_detectable,
    standardized_effect,
)
from validate.verdict import Null, judge

SHAPE = Shape((0, 1, 2), 8, 3)
NOTHING = np.zeros((3, 8), dtype=bool)


@pytest.fixture(scope="module")
def anatomy() -> Anatomy:
    return dissect(tiny.build("olmoe"))


# Losses and the rig.


def test_loss_is_the_models_own(anatomy: Anatomy) -> None:
    text = windows()
    tokens = torch.from_numpy(text.tokens)
    with torch.no_grad():
        theirs = [float(anatomy.model(input_ids=row[None], labels=row[None]).loss) for row in tokens]
    np.testing.assert_allclose(window_losses(anatomy.model, text, batch=4), theirs, atol=1e-5)


def test_padding_does_not_count(anatomy: Anatomy) -> None:
    from dataclasses import replace

    text = windows()
    padded = replace(
        text, tokens=np.pad(text.tokens, ((0, 0), (0, 4))), mask=np.pad(text.mask, ((0, 0), (0, 4)))
    )
    np.testing.assert_allclose(
        window_losses(anatomy.model, padded), window_losses(anatomy.model, text), atol=1e-5
    )


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_rig_passes(family: str) -> None:
    found = dissect(tiny.build(family))
    checks = rig.check_rig(found, windows(), uniform_plan(found.shape.layers))
    assert [check.name[0] for check in checks] == ["1", "2", "3", "4", "5", "6"]


def checked(anatomy: Anatomy) -> dict[str, Check]:
    """The checks of a model by their number."""
    first, plan = windows(1), uniform_plan(anatomy.shape.layers)
    tokens = first.tensor("cpu")
    probes = [LossProbe(anatomy, first, plan), LocalProbe(anatomy, tokens), PlantedProbe(anatomy, tokens)]
    return {check.name[0]: check for check in run_probes(anatomy, probes)}


def test_rig_check_1_can_fail(anatomy: Anatomy, monkeypatch: pytest.MonkeyPatch) -> None:
    mean = LossProbe.mean
    monkeypatch.setattr(LossProbe, "mean", lambda self, logits: mean(self, logits) + 0.01)
    with pytest.raises(ExciseError, match="failed its check \"1 own loss = model's loss\": own .*, model's"):
        rig.check_rig(anatomy, windows(), uniform_plan(anatomy.shape.layers))


def test_rig_check_2_can_fail(anatomy: Anatomy, monkeypatch: pytest.MonkeyPatch) -> None:
    """A restriction that leaves a router smaller than it was."""

    @contextmanager
    def lasting(part: Anatomy, plan: Plan) -> Iterator[None]:
        with restricted(part, plan):
            yield
        for layer in part.layers:
            layer.router.weight.data[0] += 1

    routers = [layer.router.weight.detach().clone() for layer in anatomy.layers]
    monkeypatch.setattr(rig_losses, "restricted", lasting)
    failed = checked(anatomy)["2"]
    for layer, router in zip(anatomy.layers, routers, strict=True):
        layer.router.weight.data.copy_(router)
    assert not failed.passed


def test_rig_check_3_can_fail() -> None:
    model = tiny.build("olmoe")
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert not checked(dissect(model))["3"].passed


def marks_replaced(monkeypatch: pytest.MonkeyPatch, replaced: Callable[[Tensor], Tensor]) -> None:
    """Every removal removes other experts than it was asked to."""
    change = RemovalBranch.change

    def wrong(self: RemovalBranch, part: Part) -> AbstractContextManager[None]:
        removed = {row: replaced(marks) for row, marks in self.removed.items()}
        return change(replace(self, removed=removed), part)

    monkeypatch.setattr(RemovalBranch, "change", wrong)


def test_rig_check_4_can_fail(anatomy: Anatomy, monkeypatch: pytest.MonkeyPatch) -> None:
    """An instrument that removes an expert everywhere, or never."""
    with monkeypatch.context() as everywhere:
        marks_replaced(everywhere, lambda marks: marks.any(0) if marks.ndim == 2 else marks)
        check = checked(anatomy)["4"]
    assert not check.passed
    assert not check.evidence.startswith("0 losses")
    marks_replaced(monkeypatch, lambda marks: marks & False)
    check = checked(anatomy)["4"]
    assert not check.passed
    assert check.evidence.startswith("0 losses of 6 cells moved that must not, 0 of 3")


def test_rig_check_5_can_fail(anatomy: Anatomy, monkeypatch: pytest.MonkeyPatch) -> None:
    """An instrument that removes the wrong expert sees an effect where there is none."""
    marks_replaced(monkeypatch, lambda marks: ~marks if marks.ndim == 1 else marks)
    before = tiny.logits(anatomy.model)
    check = checked(anatomy)["5"]
    assert not check.passed
    assert not check.evidence.startswith("0 losses")
    assert torch.equal(tiny.logits(anatomy.model), before), "the planted expert was not written back"


def test_rig_check_6_can_fail(anatomy: Anatomy, monkeypatch: pytest.MonkeyPatch) -> None:
    cut = cutting.cut_layer
    monkeypatch.setattr(cutting, "cut_layer", lambda layer, kept, experts: cut(layer, kept[::-1], experts))
    check = checked(anatomy)["6"]
    assert not check.passed
    assert "3 of 3 blocks differ, first model.layers.0.mlp" in check.evidence
    assert not rig.check_reloaded(torch.zeros(2), torch.tensor([0.0, 1e-7])).passed


# Random plans.


def test_random_plans_have_exactly_the_same_sizes() -> None:
    plan = Plan(8, {0: (0, 1, 2), 1: (0, 1, 2, 3, 4), 2: (5, 6, 7)})
    randoms = random_plans(plan, SHAPE, NOTHING, 50, seed=3)
    assert all(random.counts == plan.counts for random in randoms)
    assert len({random.digest for random in randoms}) == 50
    assert [random.digest for random in randoms] == [
        random.digest for random in random_plans(plan, SHAPE, NOTHING, 50, seed=3)
    ]
    assert {random.digest for random in randoms}.isdisjoint(
        random.digest for random in random_plans(plan, SHAPE, NOTHING, 50, seed=4)
    )


def test_random_plans_are_uniform() -> None:
    """Every expert is kept equally often (χ² test of 2,000 plans, p > 0.001)."""
    plan = uniform_plan((0, 1, 2), (0, 1, 2, 3))
    kept = np.zeros((3, 8))
    for random in random_plans(plan, SHAPE, NOTHING, 2000, seed=0):
        for row, ids in enumerate(random.kept.values()):
            kept[row, list(ids)] += 1
    assert stats.chisquare(kept, axis=1).pvalue.min() > 0.001


def test_random_plans_respect_groups_and_protection() -> None:
    shape = Shape((1, 2), 8, 2, 2, 1)
    protected = np.zeros((2, 8), dtype=bool)
    protected[0, 5] = True
    for random in random_plans(uniform_plan((1, 2), (0, 1, 4, 5)), shape, protected, 30, seed=0):
        shape.check_kept(random.kept)
        assert 5 in random.kept[1]


def test_random_plans_that_cannot_differ_are_refused() -> None:
    protected = np.zeros((3, 8), dtype=bool)
    protected[:, :3] = True
    with pytest.raises(ExciseError, match="only one plan of this size is possible"):
        random_plans(uniform_plan((0, 1, 2), (0, 1, 2)), SHAPE, protected, 20, seed=0)


# Statistics.


def test_permutation_p_by_hand() -> None:
    null = np.array([3.0, 1.0, 2.0, 4.0])
    assert permutation_p(0.5, null) == 1 / 5
    assert permutation_p(2.0, null) == 3 / 5  # a tie counts as "as good"
    assert permutation_p(9.0, null) == 1.0
    assert standardized_effect(1.5, null) == pytest.approx((2.5 - 1.5) / np.std(null, ddof=1))


def test_degenerate_nulls_claim_nothing() -> None:
    assert np.isnan(permutation_p(float("nan"), np.arange(20.0)))
    assert np.isnan(permutation_p(1.0, np.array([1.0, np.nan])))
    assert np.isnan(standardized_effect(1.0, np.array([2.0, 2.0])))
    assert np.isnan(smallest_detectable(np.array([2.0]), 0.05))


def test_false_positive_rate_is_at_most_alpha() -> None:
    """A criterion that is itself random beats 20 random plans with probability 1/21 ≤ .05 (20,000 simulated
    criteria).
    """
    draws = np.random.default_rng(0).normal(size=(20_000, 21))
    rate = np.mean([permutation_p(row[0], row[1:]) <= 0.05 for row in draws])
    assert rate == pytest.approx(1 / 21, abs=0.005)


@pytest.mark.parametrize("alpha", [0.05, 0.05 / 20])
def test_smallest_detectable_has_the_power_it_claims(alpha: float) -> None:
    """A t test for one more draw finds a shift of that size in 80 % of simulated nulls."""
    rng, found = np.random.default_rng(0), []
    shift = np.mean([smallest_detectable(rng.normal(size=20), alpha) for _ in range(2000)])
    for _ in range(4000):
        null, value = rng.normal(size=20), rng.normal() - shift
        t = (np.mean(null) - value) / (np.std(null, ddof=1) * np.sqrt(1 + 1 / 20))
        found.append(stats.t.sf(t, 19) <= alpha)
    assert np.mean(found) == pytest.approx(0.8, abs=0.04)


def test_clustered_interval_covers() -> None:
    """Rows of a document share an error: the interval over documents covers the truth in about 95 %, one over
    rows would not.
    """
    rng, clusters, covered, naive = np.random.default_rng(0), np.repeat(np.arange(30), 8), [], []
    weights = np.full(240, 255.0)
    for seed in range(150):
        rows = 1 + rng.normal(size=30)[clusters] + 0.3 * rng.normal(size=240)
        interval = clustered_interval(rows, weights, clusters, seed)
        covered.append(interval.low <= 1 <= interval.high)
        half = 1.96 * rows.std(ddof=1) / np.sqrt(240)
        naive.append(abs(rows.mean() - 1) <= half)
    assert 0.88 <= np.mean(covered) <= 0.99
    assert np.mean(naive) < 0.7


def test_one_document_gives_no_interval() -> None:
    found = clustered_interval(np.array([1.0, 2.0]), np.ones(2), np.array([0, 0]))
    assert np.isnan(found.low)
    assert "one document only" in found.reason


@pytest.mark.parametrize(
    ("evidence", "verdict"),
    [
        ((0.04, 1.0, 0.1, 0.2), "beats random"),
        ((0.06, 1.0, 0.1, 0.2), "not distinguishable"),
        ((0.04, 1.0, -0.1, 0.2), "not distinguishable"),
        ((1.0, 0.04, -0.2, -0.1), "worse than random"),
        ((1.0, 0.04, -0.2, 0.1), "not distinguishable"),
        ((0.04, 1.0, float("nan"), float("nan")), "not distinguishable"),
    ],
)
def test_verdict(evidence: tuple[float, float, float, float], verdict: str) -> None:
    assert judge(*evidence) == verdict


# The whole test, and its raw rows.


def measured(anatomy: Anatomy, path: Path, key: str = "k") -> Evidence:
    """Not judged yet."""
    plan, reverse = uniform_plan((0, 1, 2)), uniform_plan((0, 1, 2), (0, 1, 2, 3, 4, 5))
    evaluator = LossEvaluator(windows(), path, key)
    measure = Measure(LOSS, "nats per token", evaluator, evaluator.weights, evaluator.windows.document)
    contest = Contest(plan, reverse, random_plans(plan, SHAPE, NOTHING, 20, 0), "f", "layer")
    return evidence_of(contest, [measure], Null.COUNTED, 0, anatomy)


def test_rows_are_kept_in_memory_without_a_file(
    anatomy: Anatomy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same numbers, each plan measured once, nothing written."""
    monkeypatch.chdir(tmp_path)
    plan, calls = uniform_plan((0, 1, 2)), []
    in_memory, in_file = LossEvaluator(windows()), LossEvaluator(windows(), tmp_path / "losses.csv", "k")
    in_file.measure_plans([plan], anatomy)
    (tmp_path / "losses.csv").unlink()
    measure = LossEvaluator.measure
    monkeypatch.setattr(
        LossEvaluator,
        "measure",
        lambda self, anatomy, plans: (calls.extend(plans), measure(self, anatomy, plans))[1],
    )
    for _ in range(2):
        in_memory.measure_plans([plan], anatomy)
    assert len(calls) == 1
    np.testing.assert_array_equal(in_memory.values(plan), in_file.values(plan))
    assert list(tmp_path.iterdir()) == []


def run_test(anatomy: Anatomy, path: Path, key: str = "k") -> Evidence:
    return with_verdicts([measured(anatomy, path, key)], Correction.NONE, Null.COUNTED)[0]


def test_without_a_verdict_there_is_no_report(anatomy: Anatomy, tmp_path: Path) -> None:
    """A test that was measured and not judged has no "not distinguishable" to show."""
    found = measured(anatomy, tmp_path / "losses.csv")
    assert not hasattr(found.costs[0].own, "verdict")
    with pytest.raises(TypeError, match="was not judged"):
        found.to_json()


def test_everything_can_be_recomputed_from_the_raw_rows(anatomy: Anatomy, tmp_path: Path) -> None:
    """With csv, numpy and scipy alone: ΔCE, random values, p; and the losses are those of an independent
    restriction.
    """
    found = run_test(anatomy, tmp_path / "losses.csv")
    with (tmp_path / "losses.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    table: dict[str, list[float]] = {}
    for row in rows:
        table.setdefault(row["digest"], []).append(float(row["loss"]))
    full = np.mean(table["full"])
    delta = np.mean(table[found.plan.digest]) - full
    null = np.array(
        [np.mean(table[r.digest]) - full for r in random_plans(found.plan, SHAPE, NOTHING, 20, 0)]
    )
    cost = found.costs[0]
    assert cost.delta == pytest.approx(delta, abs=1e-12)
    np.testing.assert_allclose(cost.own.values, null, atol=1e-12)
    assert cost.own.p == cost.own.p_corrected == (1 + sum(value <= delta for value in null)) / 21
    with restricted(anatomy, found.plan):
        np.testing.assert_array_equal(window_losses(anatomy.model, windows()), table[found.plan.digest])


def test_rows_are_used_again_and_only_under_the_same_key(
    anatomy: Anatomy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run_test(anatomy, tmp_path / "losses.csv")
    # Interrupted: the last plan is incomplete, and a line was being written.
    lines = (tmp_path / "losses.csv").read_text().splitlines(keepends=True)
    (tmp_path / "losses.csv").write_text(
        "".join(lines)[: -len("123\n")]
    )  # the last number lost some of its digits
    measured = []
    measure = LossEvaluator.measure
    monkeypatch.setattr(
        LossEvaluator,
        "measure",
        lambda self, anatomy, plans: (measured.extend(plans), measure(self, anatomy, plans))[1],
    )
    again = run_test(anatomy, tmp_path / "losses.csv")
    assert again == first
    assert len(measured) == 1
    run_test(anatomy, tmp_path / "losses.csv", key="another model")
    assert len(measured) == 1 + 23


@pytest.mark.parametrize("damage", [("digest", "digset"), (",0.", ",zero."), (",3", ",x3")])
def test_damaged_rows_are_measured_again(damage: tuple[str, str], anatomy: Anatomy, tmp_path: Path) -> None:
    first = run_test(anatomy, tmp_path / "losses.csv")
    path = tmp_path / "losses.csv"
    path.write_text(path.read_text().replace(*damage))
    assert run_test(anatomy, path) == first


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    """The system's own error of a write has no file name."""
    from errno import ENOSPC

    from experts.errors import naming

    with pytest.raises(OSError, match="No space") as caught, naming(tmp_path / "losses.csv"):
        raise OSError(ENOSPC, "No space left on device")
    assert caught.value.filename == str(tmp_path / "losses.csv")
