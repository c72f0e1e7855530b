"""`excise compare`, measured criteria in `excise prune`, and rank agreement."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from criteria import calibration as calibration_module
from criteria.scores import Scores
from experts.plan import Plan
from prune.compare.plan_tables import agreement_rows
from prune.console.cli import app
from tests.support.tasks import task_file
from validate.agreement import agreement, spearman

CRITERIA = [
    "causal_removal:windows=3",
    "reap",
    "gradient",
    "gradient_abs",
    "causal_greedy:step=2,shortlist=4,windows=3",
    "reversed:gradient",
    "random",
]


def scores(name: str, values: Any) -> Scores:
    array = np.array(values, dtype=float)
    return Scores(array, np.zeros(array.shape, bool), tuple(range(len(array))), name, "")


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, [*map(str, arguments), "--quiet", "--json"])


# Agreement.


def test_spearman_by_hand() -> None:
    """ρ = 1 − 6 Σd² / n(n² − 1) without ties: ranks (1,2,3,4) and (2,1,4,3) have Σd² = 4, so ρ =
    1 − 24/60.
    """
    found = spearman(
        np.array([[10.0, 20, 30, 40], [1, 1, 1, 1], [1, np.nan, np.nan, 2]]),
        np.array([[2.0, 1, 4, 3], [1, 2, 3, 4], [1, 2, 3, 4]]),
    )
    assert found[0] == pytest.approx(0.6)
    assert math.isnan(found[1]), "a constant has no ranks"
    assert math.isnan(found[2]), "two experts are too few"


def test_agreement_needs_measured_removals() -> None:
    cheap, measured = scores("reap", [[1, 2, 3]]), scores("causal_removal:windows=2", [[1, 3, 2]])
    assert agreement([cheap]) == {}
    assert agreement([cheap, scores("reversed:causal_removal", [[3, 2, 1]])]) == {}
    assert agreement([cheap, measured]) == {"reap": [pytest.approx(0.5)]}


def test_agreement_is_listed_best_first() -> None:
    found = agreement_rows({"low": [-0.5, None], "none": [None, None], "high": [0.25, 0.75]})
    assert found == [
        ("high", "+0.50", "+0.25", "+0.75"),
        ("low", "-0.50", "-0.50", "nan"),
        ("none", "nan", "nan", "nan"),
    ]


# The command.


def test_comparison(recipe_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven criteria, two fractions, two scopes: everything is measured once, and the numbers are those of
    the raw rows.
    """
    write_comparison(recipe_path)
    experiments, measure = [], calibration_module.measure
    monkeypatch.setattr(
        calibration_module,
        "measure",
        lambda m, s: (experiments.append((m.key, s.budget.total, s.budget.scope)), measure(m, s))[1],
    )
    done = invoke("compare", recipe_path, "-o", tmp_path / "c")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    check_experiments(experiments)
    assert json.loads((tmp_path / "c" / "comparison.json").read_text()) == result
    check_plans(result)
    check_flat_rows(result, tmp_path / "c" / "comparison.csv")
    check_plan_tables(result)
    check_raw_rows(result, tmp_path / "c" / "losses.csv")
    check_scopes(result)
    assert "do unequal counts per layer pay?" in (tmp_path / "c" / "comparison.md").read_text()
    again = invoke("compare", recipe_path, "-o", tmp_path / "c")
    assert json.loads(again.stdout) == result
    assert len(experiments) == 6, "results of experiments are kept"


def write_comparison(recipe: Path) -> None:
    """Seven criteria at two fractions in two scopes."""
    data = yaml.safe_load(recipe.read_text())
    data |= {
        "criteria": CRITERIA,
        "compare": {"fractions": [0.25, 0.5], "scopes": ["layer", "global"], "stability_cost": 3.5},
    }
    data["validate"]["chance"], data["prune"]["protect_super_experts"] = "normal", False
    recipe.write_text(yaml.safe_dump(data))


def check_experiments(experiments: list[tuple[str, int, str]]) -> None:
    once = [experiment for experiment in experiments if "gradient" not in experiment[0]]
    assert len(once) == len(set(once)) == 3, "removal, greedy once a scope"
    assert len(experiments) == 3 + 3, (
        "gradient, for three criteria, of three calibration seeds: it is cheap enough for stability"
    )
    greedy = [(total, scope) for key, total, scope in experiments if key.startswith("greedy")]
    assert greedy == [(12, "layer"), (12, "global")], "greedy goes down to the smallest budget"


def check_plans(result: dict[str, Any]) -> None:
    assert [(plan["scope"], plan["fraction"]) for plan in result["plans"][::7]] == [
        ("layer", 0.25),
        ("layer", 0.5),
        ("global", 0.25),
        ("global", 0.5),
    ]
    assert {plan["criterion"] for plan in result["plans"]} == set(CRITERIA)


def check_flat_rows(result: dict[str, Any], path: Path) -> None:
    """comparison.csv."""
    with path.open() as file:
        flat = list(csv.DictReader(file))
    assert [(row["criterion"], float(row["delta"])) for row in flat] == [
        (plan["criterion"], plan["delta"]) for plan in result["plans"]
    ]
    for row, plan in zip(flat, result["plans"], strict=True):
        columns = {
            "delta_low": plan["delta_interval"][0],
            "low": plan["interval"][0],
            "smallest_detectable": plan["smallest_detectable"],
        }
        assert {name: float(row[name]) for name in columns} == columns
        assert row["verdict"] == plan["verdict"]
    assert {row["verdict_equal_counts"] for row in flat if row["scope"] == "layer"} == {""}
    assert any(row["verdict_equal_counts"] for row in flat if row["scope"] == "global"), (
        "unequal counts have a second null"
    )


def check_plan_tables(result: dict[str, Any]) -> None:
    """Stability, overlap and rank agreement: what needs no validation text."""
    repeated = {row["criterion"] for row in result["stability"] if row["seeds"] == 3}
    assert repeated == {"reap", "gradient", "gradient_abs", "reversed:gradient", "random"}
    assert {row["mean"] for row in result["stability"] if row["criterion"] == "random"} == {1.0}, (
        "it does not read the text"
    )
    assert all(row["mean"] is None for row in result["stability"] if row["criterion"] not in repeated)
    for block in result["overlap"]:
        matrix = np.array(block["matrix"])
        np.testing.assert_array_equal(np.diag(matrix), 1.0)
        np.testing.assert_allclose(matrix, matrix.T)
    agreement = result["agreement"]
    assert agreement["reference"] == CRITERIA[0]
    spearman = agreement["spearman"]
    assert set(spearman) == {*CRITERIA[1:], f"{CRITERIA[4]}, scope global"}
    for layer, opposite in zip(spearman["gradient"], spearman["reversed:gradient"], strict=True):
        assert layer == pytest.approx(-opposite)


def check_raw_rows(result: dict[str, Any], path: Path) -> None:
    """losses.csv: a row per plan and window, whose means the plans' numbers are."""
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert len({(row["digest"], row["window"]) for row in rows}) == len(rows), "a plan was measured twice"
    mean = {
        digest: np.mean([float(row["loss"]) for row in rows if row["digest"] == digest])
        for digest in {row["digest"] for row in rows}
    }
    named = {row["plan"]: row["digest"] for row in rows}
    assert result["loss"] == pytest.approx(mean[named["full"]])
    for plan in result["plans"]:
        delta, opposite = (mean[plan[name]] - result["loss"] for name in ("digest", "reversed_digest"))
        assert plan["delta"] == pytest.approx(delta, abs=1e-12)
        assert plan["reversed_delta"] == pytest.approx(opposite, abs=1e-12)


def check_scopes(result: dict[str, Any]) -> None:
    """Global against layer counts."""
    assert [(pair["first"], pair["fraction"]) for pair in result["scopes"]] == [
        (name, fraction) for fraction in (0.25, 0.5) for name in CRITERIA
    ]
    by_budget = {(plan["criterion"], plan["scope"], plan["fraction"]): plan for plan in result["plans"]}
    for pair in result["scopes"]:
        wide, same = (by_budget[pair["first"], scope, pair["fraction"]] for scope in ("global", "layer"))
        assert pair["difference"] == pytest.approx(wide["delta"] - same["delta"], abs=1e-12)
        assert pair["same_plan"] == (wide["digest"] == same["digest"])


def test_prune_with_a_measured_criterion(
    recipe_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan of the best removals is written; another fraction measures nothing anew; the report has the
    rank agreement.
    """
    experiments, measure = [], calibration_module.measure
    monkeypatch.setattr(
        calibration_module, "measure", lambda m, s: (experiments.append(m.key), measure(m, s))[1]
    )
    overrides = ("--set", "criteria=[causal_removal, reap]")
    done = invoke("prune", recipe_path, "-o", tmp_path / "a", *overrides)
    assert done.exit_code == 0, done.output
    assert experiments == ["removal:mode=reroute,outcome=loss,windows=0"]
    result = json.loads(done.stdout)
    assert set(result["agreement"]) == {"reap"}
    assert "Rank agreement" in (tmp_path / "a" / "report.md").read_text()
    assert Plan.read(tmp_path / "a" / "checkpoint" / "excise_plan.json").criterion == "causal_removal"
    assert (
        invoke(
            "prune", recipe_path, "-o", tmp_path / "b", *overrides, "--set", "prune.fraction=0.25"
        ).exit_code
        == 0
    )
    assert len(experiments) == 1


@pytest.mark.slow
def test_an_interrupted_experiment_resumes(
    recipe_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from criteria import window_rows
    from experts.stored_arrays import StoredArrays

    monkeypatch.setattr(window_rows, "KEEP_EVERY", 0.0)
    overrides = ("--set", "criteria=[causal_removal]", "--set", "calibration.batch=2")
    write, written = StoredArrays.write, []

    def second(self: StoredArrays, arrays: Any) -> None:
        write(self, arrays)
        if "rows" in arrays:  # unfinished
            written.append(int(np.isfinite(arrays["rows"]).all(axis=(1, 2)).sum()))
            if len(written) == 2:
                raise KeyboardInterrupt

    monkeypatch.setattr(StoredArrays, "write", second)
    assert invoke("prune", recipe_path, "-o", tmp_path / "a", *overrides).exit_code == 1
    assert (tmp_path / "a" / "experiment.partial.safetensors").exists()
    assert invoke("prune", recipe_path, "-o", tmp_path / "a", *overrides).exit_code == 0
    assert written == sorted(set(written)), "a finished window was measured again"
    assert not (tmp_path / "a" / "experiment.partial.safetensors").exists()


@pytest.mark.slow
def test_budgets_that_keep_the_same_are_one_test(
    recipe_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 8 experts .5, .51 and .55 remove 4, .625 all that routing can spare, in scope global too: two
    budgets, named, corrected for once.
    """
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    sets = [
        "compare.fractions=[0.5, 0.51, 0.55, 0.625, 0.63]",
        "compare.scopes=[layer, global]",
        "compare.seeds=1",
        "validate.chance=normal",
    ]
    options = [word for change in sets for word in ("--set", change)]
    done = CliRunner().invoke(
        app, ["compare", str(recipe_path), "-o", str(tmp_path / "c"), *options, "--json"]
    )
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    budgets = [("layer", 0.5), ("layer", 0.625), ("global", 0.5), ("global", 0.541667)]
    assert [(plan["scope"], plan["fraction"]) for plan in result["plans"][::2]] == budgets
    assert "Holm over 8 tests" in result["rule"]
    assert len(result["pairs"]) == 4
    assert all(one["first"] != one["second"] for one in result["pairs"])
    merged = [note for note in result["notes"] if "one test" in note]
    assert merged[0] == (
        "fraction=0.51 scope=layer keeps what fraction=0.5 scope=layer "
        "keeps: one test, under the name of the latter"
    )
    assert (
        "fraction=0.625 scope=global keeps what fraction=0.625 scope=layer "
        "keeps: one test, under the name of the latter"
    ) in merged
    assert all(done.stderr.count(f"note: {note}\n") == 1 for note in result["notes"]), "told once"
    assert merged[0] in (tmp_path / "c" / "comparison.md").read_text()
    found = {(plan["criterion"], plan["scope"], plan["fraction"]): plan for plan in result["plans"]}
    counted = sorted((plan["p"], plan["p_corrected"]) for plan in found.values())
    assert counted[0][1] == pytest.approx(min(1, 8 * counted[0][0])), (
        "Holm's first step multiplies by the real tests"
    )


@pytest.mark.slow
def test_a_search_is_shown_in_the_scope_it_searched_in(
    recipe_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In scope global `excise prune` shows scope layer beside it: not of a search, whose order belongs to one
    scope.
    """
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    name = "causal_greedy:start=reap,shortlist=4,step=4,windows=2"
    options = ["--set", "prune.scope=global", "--set", f"criteria=['{name}', reap]", "--json"]
    done = CliRunner().invoke(app, ["prune", str(recipe_path), "-o", str(tmp_path / "p"), *options])
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert [(plan["criterion"], plan["scope"]) for plan in result["plans"]] == [
        (name, "global"),
        ("reap", "global"),
    ]
    note = f"{name} searches in scope global alone, so no other scope is shown beside it"
    assert any(note in one for one in result["notes"])
    assert done.stderr.count(note) == 1
    options = [
        "--set",
        "compare.scopes=[layer, global]",
        "--set",
        f"criteria=['{name}']",
        "--set",
        "validate.random_plans=39",
    ]
    compared = invoke("compare", recipe_path, "-o", tmp_path / "c", *options)
    plans = {plan["scope"]: plan["digest"] for plan in json.loads(compared.stdout)["plans"]}
    assert plans["global"] == result["plans"][0]["digest"]
    alone = invoke("prune", recipe_path, "-o", tmp_path / "l", "--set", f"criteria=['{name}']")
    assert json.loads(alone.stdout)["plans"][0]["digest"] == plans["layer"] != plans["global"]


@pytest.mark.slow
def test_stability_searches_as_far_down_as_the_first_seed(
    recipe_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plans of another seed are compared with those of the first: the same search, to the smallest budget,
    once a seed.
    """
    searched, measure = [], calibration_module.measure
    monkeypatch.setattr(
        calibration_module,
        "measure",
        lambda m, s: (searched.append((s.windows.hash, s.budget.total)), measure(m, s))[1],
    )
    sets = [
        "compare.fractions=[0.25, 0.5]",
        "compare.seeds=3",
        "compare.stability_cost=1000",
        "validate.chance=normal",
    ]
    sets += ["criteria=['causal_greedy:rounds=3,start=reap,windows=1']", "calibration.sequences=4"]
    done = invoke(
        "compare", recipe_path, "-o", tmp_path / "c", *(word for change in sets for word in ("--set", change))
    )
    assert done.exit_code == 0, done.output
    assert len({text for text, _ in searched}) == len(searched) == 3
    assert {total for _, total in searched} == {12}
    assert any(
        "rounds count down to the smallest budget of a scope" in note
        for note in json.loads(done.stdout)["notes"]
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("compare.fractions=[0.25, 1.5]", "prune.fraction is 1.5"),
        ("compare.fractions=[0.9]", "every token uses top_k"),
        (
            "compare.scopes=[everywhere]",
            "compare.scopes.0: input should be 'layer' or 'global', got 'everywhere'",
        ),
        ("compare.fraction=0.5", "unknown key 'compare.fraction'; did you mean 'fractions'?"),
        ("criteria=[causal_removal:steps=3]", "no setting 'steps=3'"),
    ],
)
def test_errors_before_the_work(change: str, message: str, recipe_path: Path, tmp_path: Path) -> None:
    done = invoke("compare", recipe_path, "-o", tmp_path / "c", "--set", change)
    assert done.exit_code == 1
    assert message in done.stderr
    assert not (tmp_path / "c").exists()


def test_fewer_items_or_documents_than_a_test_needs(
    recipe_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three pairs: a two-sided sign test over n items has at best p = 2/2ⁿ, and 3 · 2/2ⁿ ≤ .05
    takes n = 7.
    """
    task_file(tmp_path / "tasks")
    tasks = (
        "--set",
        "validate.tasks={names: guess, include: tasks}",
        "--set",
        "validate.chance=normal",
        "--set",
        "criteria=[reap,utilization,random]",
    )
    few = invoke("compare", recipe_path, "-o", tmp_path / "a", *tasks, "--set", "validate.tasks.limit=6")
    assert few.exit_code == 1
    assert few.stderr == (
        "excise: validate.tasks: guess has 6 items; 3 tests at α = 0.05 need at "
        "least 7; raise limit, or take a longer task\n"
    )
    options = ("-o", str(tmp_path / "b"), *tasks[2:], "--set", "validate.sequences=5")
    monkeypatch.delenv("TQDM_DISABLE", raising=False)  # what --quiet left
    noted = CliRunner().invoke(app, ["compare", str(recipe_path), *options])
    assert noted.exit_code == 0
    assert "no two criteria can differ significantly, which takes 7 after Holm over 3 pairs" in noted.stderr


def test_too_few_plans_to_count(recipe_path: Path, tmp_path: Path) -> None:
    """Refused before torch is loaded, with the number that is needed; the limit of the tasks counts too."""
    done = invoke("compare", recipe_path, "-o", tmp_path / "c")
    assert done.exit_code == 1
    assert (
        "validate.random_plans is 20: after Holm over 2 tests (criteria × budgets) no p can fall below 0.095"
        in done.stderr
    )
    assert "take at least 39" in done.stderr
    task_file(tmp_path / "tasks")
    overrides = (
        "--set",
        "validate.random_plans=39",
        "--set",
        "validate.tasks={names: guess, include: tasks, random_plans: 12}",
    )
    limited = invoke("compare", recipe_path, "-o", tmp_path / "c", *overrides)
    assert "validate.tasks.random_plans is 12" in limited.stderr
    assert not (tmp_path / "c").exists()
