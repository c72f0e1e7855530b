"""Every p-value and interval of a report, recomputed from the raw rows that lie beside it: csv, numpy and
scipy alone.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy import stats
from typer.testing import CliRunner

from prune.console.cli import app
from tests.support.texts import DOCUMENTS, write_words

ITEMS = 12  # of the task
# Random plans and criteria: by counting, four plans in a family ask for 79 to reach α / 4.
TESTED = {"counted": (79, ["reap", "utilization"]), "normal": (20, ["reap", "utilization", "reversed:reap"])}
Rows = dict[str, np.ndarray[Any, Any]]


def rows_of(path: Path) -> list[dict[str, str]]:
    import csv

    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def by_digest(rows: list[dict[str, str]], column: str) -> Rows:
    found: dict[str, list[float]] = {}
    for row in rows:
        found.setdefault(row["digest"], []).append(float(row[column]))
    return {digest: np.array(values) for digest, values in found.items()}


def interval(differences: Any, weights: Any, clusters: Any, seed: int) -> tuple[float, float]:
    """Percentile bootstrap of the weighted mean over clusters in the order of their first row."""
    order = list(dict.fromkeys(clusters))
    sums = np.array(
        [
            sum(d * w for d, w, c in zip(differences, weights, clusters, strict=True) if c == one)
            for one in order
        ]
    )
    sizes = np.array([sum(w for w, c in zip(weights, clusters, strict=True) if c == one) for one in order])
    found = stats.bootstrap(
        (sums, sizes),
        lambda total, size, axis: total.sum(axis=axis) / size.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=9999,
        method="percentile",
        batch=1000,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return found.low, found.high


def holm(p: list[float]) -> list[float]:
    order, found, highest = np.argsort(p), [0.0] * len(p), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, p[place] * (len(p) - rank)))
        found[place] = highest
    return found


def chance(kind: str, delta: float, null: Any) -> tuple[float, float]:
    if kind == "counted":
        return (1 + sum(null <= delta)) / (len(null) + 1), (1 + sum(null >= delta)) / (len(null) + 1)
    t = (delta - null.mean()) / (null.std(ddof=1) * math.sqrt(1 + 1 / len(null)))
    return stats.t.cdf(t, len(null) - 1), stats.t.sf(t, len(null) - 1)


@pytest.fixture
def compared(recipe_path: Path, tmp_path: Path) -> Callable[[str], tuple[dict[str, Any], Path]]:
    """A comparison with a task, in both scopes, on text of two domains."""
    write_words(tmp_path / "other.txt", 900, np.random.default_rng(3))
    (tmp_path / "tasks").mkdir()
    rng = np.random.default_rng(0)
    items = [
        {
            "context": f"{rng.integers(1e6)} is",
            "choices": [f" {a}" for a in rng.integers(1000, size=3)],
            "answer": 1,
        }
        for _ in range(ITEMS)
    ]
    (tmp_path / "tasks" / "items.jsonl").write_text("\n".join(map(json.dumps, items)))
    task = {
        "task": "guess",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "items.jsonl"}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{context}}",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (tmp_path / "tasks" / "guess.yaml").write_text(yaml.safe_dump(task))
    data = yaml.safe_load(recipe_path.read_text())
    data["validate"]["data"] = [
        {"text": [f"{name}.txt"], "separator": DOCUMENTS, "domain": name} for name in ("test", "other")
    ]
    data |= {
        "compare": {"fractions": [0.25], "scopes": ["layer", "global"], "seeds": 2},
    }

    def run(kind: str) -> tuple[dict[str, Any], Path]:
        plans, data["criteria"] = TESTED[kind]
        data["validate"] |= {
            "chance": kind,
            "random_plans": plans,
            "tasks": {"names": "guess", "include": "tasks"},
        }
        recipe_path.write_text(yaml.safe_dump(data))
        done = CliRunner().invoke(
            app, ["compare", str(recipe_path), "-o", str(tmp_path / kind), "--quiet", "--json"]
        )
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout), tmp_path / kind

    return run


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["counted", "normal"])
def test_a_comparison(kind: str, compared: Callable[[str], tuple[dict[str, Any], Path]]) -> None:
    result, folder = compared(kind)
    losses, items = rows_of(folder / "losses.csv"), rows_of(folder / "items.csv")
    first = [row for row in losses if row["digest"] == "full"]
    tokens, documents = np.array([float(row["tokens"]) for row in first]), [row["document"] for row in first]
    scores = {digest: -values for digest, values in by_digest(items, "score").items()}
    measures = [
        Rows("loss", by_digest(losses, "loss"), tokens, documents),
        Rows("guess", scores, np.ones(ITEMS), list(range(ITEMS))),
    ]
    for rows in measures:
        costs = [(plan, plan if rows.name == "loss" else plan["tasks"][0]) for plan in result["plans"]]
        unequal = [cost["equal_counts"] for _, cost in costs if cost["equal_counts"]]
        assert unequal, "scope global gives unequal counts"
        for plan, cost in costs:
            recompute_cost(rows, plan, cost)
            recompute_chance(kind, rows, plan, cost, cost, len(costs))
            if cost["equal_counts"]:
                recompute_chance(kind, rows, plan, cost, cost["equal_counts"], len(unequal))
        recompute_corrections([cost for _, cost in costs], unequal)
        if rows.name == "loss":
            recompute_domains(kind, rows, np.array([row["domain"] for row in first]), result["plans"])
        recompute_pairs(result, rows.name, rows.values, rows.weights, rows.clusters)
    assert {plan["verdict"] for plan in result["plans"]} <= {
        "beats random",
        "not distinguishable",
        "worse than random",
    }


@dataclass(frozen=True)
class Rows:
    """The raw rows of a measure: values by digest, weights and clusters of the rows."""

    name: str
    values: dict[str, Any]
    weights: Any
    clusters: list[Any]

    def of(self, inside: Any) -> "Rows":
        """Some of the rows."""
        values = {digest: row[inside] for digest, row in self.values.items()}
        clusters = [name for name, one in zip(self.clusters, inside, strict=True) if one]
        return Rows(self.name, values, self.weights[inside], clusters)

    def mean(self, differences: Any) -> Any:
        return np.average(differences, weights=self.weights)

    def interval(self, differences: Any) -> Any:
        return interval(differences, self.weights, self.clusters, 0)


def recompute_cost(rows: Rows, plan: dict[str, Any], cost: dict[str, Any]) -> None:
    """A plan and its reverse against the unpruned model."""
    own, reverse, full = (rows.values[digest] for digest in (plan["digest"], plan["reversed_digest"], "full"))
    assert cost["delta"] == pytest.approx(rows.mean(own - full), abs=1e-12)
    np.testing.assert_allclose(cost["delta_interval"], rows.interval(own - full), atol=1e-12)
    assert cost["reversed_delta"] == pytest.approx(rows.mean(reverse - full), abs=1e-12)
    np.testing.assert_allclose(cost["ends_interval"], rows.interval(reverse - own), atol=1e-12)
    assert cost["p_full"] == pytest.approx(paired_p(rows.name, own, full, rows.weights, rows.clusters))


def recompute_chance(
    kind: str, rows: Rows, plan: dict[str, Any], cost: dict[str, Any], against: dict[str, Any], tests: int
) -> None:
    """A plan against random plans: of its own counts, or of equal ones."""
    own, full = rows.values[plan["digest"]], rows.values["full"]
    randoms = np.array([rows.values[digest] for digest in against["random"]["digests"]])
    null = np.array([rows.mean(row - full) for row in randoms])
    np.testing.assert_allclose(against["random"]["values"], null, atol=1e-12)
    p = chance(kind, cost["delta"], np.array(against["random"]["values"]))
    assert (against["p"], against["p_worse"]) == pytest.approx(p)
    assert against["effect"] == pytest.approx((null.mean() - cost["delta"]) / null.std(ddof=1))
    np.testing.assert_allclose(against["interval"], rows.interval(randoms.mean(axis=0) - own), atol=1e-12)
    assert against["random"]["normality_p"] == pytest.approx(stats.shapiro(null).pvalue, rel=1e-6)
    spread = math.sqrt(1 + 1 / len(null))
    reach = stats.t.ppf(1 - 0.05 / tests, len(null) - 1) * spread + stats.norm.ppf(0.8)
    assert against["smallest_detectable"] == pytest.approx(reach * null.std(ddof=1))


def recompute_corrections(costs: list[dict[str, Any]], unequal: list[dict[str, Any]]) -> None:
    """Holm, over all tests of a kind."""
    for corrected, raw in (("p_corrected", "p"), ("p_worse_corrected", "p_worse")):
        assert [cost[corrected] for cost in costs] == pytest.approx(holm([cost[raw] for cost in costs]))
    corrected = [test["p_corrected"] for test in unequal]
    assert corrected == pytest.approx(holm([test["p"] for test in unequal]))


def recompute_domains(kind: str, rows: Rows, domain: Any, plans: list[dict[str, Any]]) -> None:
    """The same figures from the windows of each domain alone; Holm over the domains of a plan."""
    for plan in plans:
        assert {part["name"] for part in plan["domains"]} == {"test", "other"}
        rises = [part["delta"] for part in plan["domains"]]
        assert rises == sorted(rises, reverse=True), "the worst domain first"
        for part in plan["domains"]:
            inside = domain == part["name"]
            own = rows.of(inside)
            assert part["full"] == pytest.approx(own.mean(own.values["full"]))
            recompute_cost(own, plan, part)
            recompute_chance(kind, own, plan, part, part, 2)
            if part["equal_counts"]:
                recompute_chance(kind, own, plan, part, part["equal_counts"], 2)
        unequal = [part["equal_counts"] for part in plan["domains"] if part["equal_counts"]]
        recompute_corrections(plan["domains"], unequal)


def paired_p(name: str, one: Any, other: Any, weights: Any, clusters: list[Any]) -> Any:
    """Sign flips over documents, or exact McNemar over items."""
    if name != "loss":
        b, c = int(((one < 0) & (other == 0)).sum()), int(((one == 0) & (other < 0)).sum())
        return stats.binomtest(b, b + c, 0.5).pvalue if b + c else None
    order = list(dict.fromkeys(clusters))
    sums = [
        sum(w * d for w, d, c in zip(weights, one - other, clusters, strict=True) if c == document)
        for document in order
    ]
    return stats.permutation_test(
        (sums,), np.sum, permutation_type="samples", vectorized=False, rng=np.random.default_rng(0)
    ).pvalue


def recompute_pairs(
    result: dict[str, Any], name: str, values: Rows, weights: Any, clusters: list[Any]
) -> None:
    found = {(plan["criterion"], plan["scope"]): values[plan["digest"]] for plan in result["plans"]}
    pairs = [pair for pair in result["pairs"] if pair["name"] == name]
    criteria = len(found) // 2
    assert len(pairs) == 2 * math.comb(criteria, 2) > 0, "in either scope"
    expected = []
    for pair in pairs:
        one, other = (found[pair[side], pair["scope"]] for side in ("first", "second"))
        assert pair["difference"] == pytest.approx(np.average(one - other, weights=weights), abs=1e-12)
        np.testing.assert_allclose(
            [pair["low"], pair["high"]], interval(one - other, weights, clusters, 0), atol=1e-12
        )
        p = paired_p(name, one, other, weights, clusters)
        p = math.nan if p is None else p
        assert (math.nan if pair["p"] is None else pair["p"]) == pytest.approx(p, nan_ok=True)
        expected.append(1.0 if math.isnan(p) else p)
    for pair, p in zip(pairs, holm(expected), strict=True):
        assert pair["p"] is None or pair["p_corrected"] == pytest.approx(p)
        assert pair["differ"] == (pair["p"] is not None and p <= 0.05)
