"""The test of a plan by domain: every figure against numpy on the domain's own windows, and the sentence that
says where a verdict does not hold.
"""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from criteria.text.windows import Windows
from experts.anatomy import dissect
from experts.model import Model
from experts.plan import Plan
from tests.support import tiny
from tests.support.inputs import uniform_plan, windows
from validate.chance import against_random
from validate.conclusion import caveat, conclusion
from validate.evidence import Evidence, Judged
from validate.measure import Measure, loss_measure
from validate.null import Contest, evidence_of, with_verdicts
from validate.rows import FULL, LossEvaluator
from validate.statistics import Correction
from validate.verdict import Null, standing

# Nine windows of three documents in either domain; the windows of prose are longer.
DOMAIN = np.array([0, 0, 0, 1, 1, 1, 0, 1, 1])
DOCUMENT = np.array([0, 1, 2, 3, 4, 5, 0, 3, 4])
LENGTHS = np.array([5, 5, 7, 9, 9, 9, 5, 5, 9])  # tokens; one less of them has a next one
WEIGHTS = LENGTHS - 1
PLAN = Plan(100, {0: (99,)}, criterion="mine")


def text_of(domain: np.ndarray = DOMAIN, names: tuple[str, ...] = ("code", "prose")) -> Windows:
    mask = np.arange(LENGTHS.max()) < LENGTHS[:, None]
    documents = tuple(f"document {number}" for number in range(6))
    return Windows(np.zeros(mask.shape, int), mask, DOCUMENT, domain, documents, names)


def randoms_of(count: int) -> list[Plan]:
    return [Plan(100, {0: (number,)}) for number in range(count)]


class Table:
    """Losses of windows under the unpruned model, a plan and random plans, made up."""

    def __init__(self, code: float, prose: float, count: int, seed: int = 0) -> None:
        """code, prose: what the plan costs there on average; a random plan costs 0.5 ± 0.05."""
        rng, self.plans = np.random.default_rng(seed), randoms_of(count)
        self.full = rng.uniform(3, 4, 9)
        self.own = self.full + np.where(DOMAIN == 0, code, prose) + rng.normal(0, 0.02, 9)
        level = rng.normal(0.5, 0.05, (count, 1))
        self.randoms = self.full + level + rng.normal(0, 0.02, (count, 9))

    def measure(self, text: Windows) -> Measure:
        losses = LossEvaluator(text)
        losses.known = {FULL: self.full, PLAN.digest: self.own}
        losses.known |= {plan.digest: row for plan, row in zip(self.plans, self.randoms, strict=True)}
        return loss_measure(losses)

    def evidence(
        self, text: Windows | None = None, null: Null = Null.COUNTED, beside: int = 0
    ) -> Evidence[Judged]:
        """beside: random plans that are criteria of the same comparison, which has Holm over all of them."""
        measure = self.measure(text or text_of())
        tested = [PLAN, *self.plans[:beside]]
        contests = [Contest(plan, None, self.plans[beside:], "f", "layer") for plan in tested]
        measured = [evidence_of(contest, [measure], null, 0) for contest in contests]
        return with_verdicts(measured, Correction.HOLM, null)[0]

    def mean(self, rows: np.ndarray, domain: int) -> Any:
        """Weighted mean of rows [..., 9] over the windows of a domain."""
        inside = domain == DOMAIN
        return (rows * WEIGHTS)[..., inside].sum(-1) / WEIGHTS[inside].sum()


# Figures.


def test_every_figure_is_that_of_the_domains_own_windows() -> None:
    """Worked out with numpy: cost, random plans, counted p, Holm over the two domains, and the interval.

    Of three documents the bootstrap draws one alone in 1 of 27 resamples, more than 2.5 %: the interval ends
    at the least and the greatest mean of a document.
    """
    table = Table(code=0.45, prose=0.47, count=59)
    found = table.evidence()
    assert [domain.name for domain in found.domains] == ["prose", "code"], "the larger rise comes first"
    raw = {}
    for domain, number in zip(found.domains, (1, 0), strict=True):
        delta = table.mean(table.own - table.full, number)
        null = table.mean(table.randoms - table.full, number)
        assert domain.full == pytest.approx(table.mean(table.full, number))
        assert domain.delta == pytest.approx(delta)
        np.testing.assert_allclose(domain.own.values, null)
        raw[number] = (1 + sum(null <= delta)) / 60
        assert domain.own.p == raw[number]
        assert domain.own.p_worse == (1 + sum(null >= delta)) / 60
        assert domain.own.effect == pytest.approx((null.mean() - delta) / null.std(ddof=1))
        ends = by_document(table.randoms.mean(0) - table.own, number)
        assert (domain.own.interval.low, domain.own.interval.high) == pytest.approx((min(ends), max(ends)))
        assert domain.own.interval.clusters == 3
    smaller, larger = sorted(raw.values())
    holm = {smaller: 2 * smaller, larger: max(2 * smaller, larger)}
    assert smaller < larger
    for domain, number in zip(found.domains, (1, 0), strict=True):
        assert domain.own.p_corrected == pytest.approx(min(1, holm[raw[number]]))


def by_document(advantage: np.ndarray, domain: int) -> list[float]:
    """Weighted mean of every document of a domain."""
    means = []
    for document in np.unique(DOCUMENT[domain == DOMAIN]):
        inside = (domain == DOMAIN) & (document == DOCUMENT)
        means.append(float(np.average(advantage[inside], weights=WEIGHTS[inside])))
    return means


def test_the_verdict_over_all_windows_does_not_move() -> None:
    """Domains are beside it: the same p, interval and verdict as of a text of one domain."""
    table = Table(code=0.1, prose=0.7, count=59)
    two, one = table.evidence(), table.evidence(text_of(np.zeros(9, int)))
    assert two.costs[0].own == one.costs[0].own
    assert two.costs[0].delta_interval == one.costs[0].delta_interval
    assert (len(two.domains), one.domains) == (2, ())


def test_domains_of_a_plan_are_a_family_of_their_own() -> None:
    """Other criteria of a comparison correct the verdict over all windows, and not those by domain."""
    table = Table(code=0.1, prose=0.1, count=80)
    beside = table.evidence(beside=2)
    assert beside.costs[0].own.p == 1 / 79
    assert beside.costs[0].own.p_corrected == pytest.approx(3 / 79)
    assert [domain.own.p_corrected for domain in beside.domains] == pytest.approx([2 / 79, 2 / 79])


@pytest.mark.parametrize("other", [np.zeros(9, int), np.ones(9, int)])
def test_one_domain_adds_nothing(other: np.ndarray) -> None:
    """Also where the text names a second one of which it has no window."""
    found = Table(code=0.1, prose=0.1, count=39).evidence(text_of(other))
    assert found.domains == ()
    assert found.to_json()["domains"] == []
    assert found.conclusion == "mine beats random plans (p = 0.025)."


def test_windows_without_a_token_that_counts_make_no_domain() -> None:
    text = text_of(np.array([0] * 8 + [1]))
    text.mask[8, 1:] = False
    assert Table(code=0.1, prose=0.1, count=39).evidence(text).domains == ()


# The sentence.


def test_a_plan_that_wins_overall_and_loses_in_one_domain() -> None:
    """What it wins in code outweighs what it loses in prose."""
    table = Table(code=-4.0, prose=0.7, count=59)
    found = table.evidence()
    assert table.mean(table.own - table.full, 1) > table.mean(table.randoms - table.full, 1).max()
    verdicts = {domain.name: domain.own.verdict for domain in found.domains}
    assert (found.verdict, verdicts) == (
        "beats random",
        {"prose": "worse than random", "code": "beats random"},
    )
    null = table.mean(table.randoms - table.full, 1)
    worst = (
        f"Worst domain: prose, ΔCE {table.mean(table.own - table.full, 1):+.4f} against "
        f"{null.mean():+.4f} ± {null.std(ddof=1):.4f} of random plans."
    )
    assert found.conclusion == (
        "mine beats random plans (p = 0.017), but it is worse than they are in prose (p = 0.033). " + worst
    )
    assert found.to_json()["conclusion"] == found.conclusion
    assert caveat("beats random", found.to_json()["domains"]) == "worse in prose"


def test_a_plan_that_beats_random_everywhere_says_so() -> None:
    found = Table(code=0.1, prose=0.2, count=59).evidence()
    assert found.conclusion.startswith(
        "mine beats random plans (p = 0.017), also in each of prose and code by itself. Worst domain: prose, "
    )
    assert caveat(found.verdict, found.to_json()["domains"]) == ""


def test_too_few_random_plans_are_said_and_not_taken_for_no_difference() -> None:
    """1 / 21 times two is above 0.05, whatever the plan does."""
    found = Table(code=0.1, prose=0.2, count=20).evidence()
    assert {domain.own.verdict for domain in found.domains} == {"not distinguishable"}
    assert (
        "mine beats random plans (p = 0.048), but 20 random plans are too few to tell by domain: 2 domains "
        "take 39. Worst domain: prose" in found.conclusion
    )
    assert caveat(found.verdict, found.to_json()["domains"]) == "too few random plans to tell by domain"
    behind = Table(code=-4.0, prose=0.7, count=20).evidence()
    assert "take 39; it costs more than they do on average in prose (p = 1.000). " in behind.conclusion
    normal = Table(code=0.1, prose=0.2, count=20).evidence(null=Null.NORMAL)
    assert "also in each of" in normal.conclusion


def test_the_level_of_a_plan_that_is_counted() -> None:
    """39 plans suffice for two domains, 38 do not."""
    assert "too few" in Table(code=0.1, prose=0.2, count=38).evidence().conclusion
    assert "also in each of" in Table(code=0.1, prose=0.2, count=39).evidence().conclusion


@pytest.mark.parametrize(
    ("verdict", "delta", "expected"),
    [
        ("beats random", 0.1, "ahead"),
        ("worse than random", 0.9, "worse"),
        ("not distinguishable", 0.4, "not shown"),
        ("not distinguishable", 0.6, "behind"),
    ],
)
def test_standing(verdict: Any, delta: float, expected: str) -> None:
    assert standing(verdict, delta, 0.5) == expected


def test_all_that_does_not_hold_is_in_one_sentence() -> None:
    """Worse, behind and not shown; a plan that does not beat random overall names those where it is worse."""
    domains = [
        part("legal", "worse than random", 0.9, 0.01),
        part("prose", "not distinguishable", 0.6, 0.7),
        part("news", "not distinguishable", 0.6, 0.8),
        part("maths", "not distinguishable", 0.4, None),
        part("code", "beats random", 0.1, 0.0001),
    ]
    loss: Any = part("", "beats random", 0.3, 0.0001)
    assert conclusion("mine", loss, domains) == (
        "mine beats random plans (p < 0.001), but it is worse than they are in legal (p = 0.010); it costs "
        "more than they do on average in prose (p = 0.700) and news (p = 0.800); no advantage is shown in "
        "maths (p = nan). Worst domain: legal, ΔCE +0.9000 against +0.5000 ± 0.1000 of random plans."
    )
    assert caveat("beats random", domains) == "worse in legal; behind in prose and news; not shown in maths"
    loss = part("", "not distinguishable", 0.3, 0.2)
    assert conclusion("mine", loss, domains).startswith(
        "mine is not distinguishable from random plans (p = 0.200), but it is worse than they are in legal "
        "(p = 0.010). Worst"
    )
    assert caveat("not distinguishable", domains) == "worse in legal"
    loss = part("", "worse than random", 0.9, 0.01)
    assert conclusion("mine", loss, domains).startswith("mine is worse than random plans (p = 0.010). Worst")
    assert caveat("worse than random", domains) == ""


def part(name: str, verdict: str, delta: float, p: float | None) -> Any:
    """A domain with as much of its JSON as a sentence needs; 99 random plans."""
    return {
        "name": name,
        "verdict": verdict,
        "delta": delta,
        "p_corrected": p,
        "p_worse_corrected": p,
        "smallest_detectable": 0.1,
        "random": {"values": [0.5] * 99, "mean": 0.5, "sd": 0.1},
    }


def test_without_spread_it_is_not_the_number_of_plans() -> None:
    """A normal p of random plans that all cost the same is no number, of as many plans as you like."""
    alike = part("code", "not distinguishable", 0.4, None) | {"smallest_detectable": None}
    alike["random"]["values"] = [0.5] * 5
    assert caveat("beats random", [alike, part("prose", "beats random", 0.4, 0.01)]) == "not shown in code"


# On a model, and its raw rows.


def test_a_caller_gets_the_domains(olmoe: Model) -> None:
    """Of the public function: worst first, each with its verdict, and from the rows of its windows."""
    plan, text = uniform_plan(olmoe.shape.layers), windows()
    result = against_random(olmoe, plan, text, plans=5)
    assert {domain.name for domain in result.domains} == {"x", "y"}
    assert result.domains[0].delta >= result.domains[1].delta
    assert np.mean([domain.delta for domain in result.domains]) == pytest.approx(result.delta)
    assert [entry["name"] for entry in result.to_json()["domains"]] == [d.name for d in result.domains]
    assert "Worst domain: " + result.domains[0].name in result.conclusion


@pytest.fixture(scope="module")
def olmoe(tmp_path_factory: pytest.TempPathFactory) -> Model:
    import experts

    return experts.load(tiny.save(tiny.build("olmoe"), tmp_path_factory.mktemp("olmoe")))


def test_rows_name_their_domain_and_older_files_are_read(tmp_path: Path) -> None:
    """A file without the column keeps what was measured, and gets the column."""
    anatomy, path = dissect(tiny.build("olmoe")), tmp_path / "losses.csv"
    LossEvaluator(windows(), path, "k").measure_plans([None], anatomy)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["domain"] for row in rows] == ["x", "y"] * 3
    older = [column for column in rows[0] if column != "domain"]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, older, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    again = LossEvaluator(windows(), path, "k")
    assert again.values(None).tolist() == [float(row["loss"]) for row in rows]
    with path.open(newline="") as file:
        assert list(csv.DictReader(file)) == rows
