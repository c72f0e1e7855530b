"""`prune.counts: refitted`: counts per layer by what is left after each layer's refit, in `excise prune`."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import criteria
import finetune
from experts.errors import ExciseError
from experts.plan import Plan
from finetune.allocation import costs
from finetune.allocation.cut import Cut
from prune.forecast.forecast import forecast
from prune.recipe.read import read_recipe
from prune.session import allocations
from prune.session.checked import checked_for
from prune.session.prepare import prepare
from prune.session.session import Session
from tests.support.interruptions import Killed
from tests.support.recipes import execute, invoke
from validate.chance import contest_of

REFITTED = ("refit.lambda=0.1", "prune.scope=global", "prune.counts=refitted")


def test_the_plan_is_that_of_the_python_function(recipe_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = execute(recipe_path, out, *REFITTED)
    session = Session(prepare(read_recipe(recipe_path), tmp_path / "other"))
    model, text = session.model, session.texts.calibration
    budget = criteria.budget_for(model, fraction=0.5, scope="global")
    for row, name in zip(result["allocations"], ("reap", "random"), strict=True):
        expected = finetune.allocate(model, criteria.score(model, name, text), text, budget=budget, ridge=0.1)
        assert (row["criterion"], row["fraction"]) == (name, 0.5)
        assert row["chosen"] == list(expected.counts.values())
        assert row["by_scores"] == list(expected.by_scores.values())
        np.testing.assert_allclose(row["kl"], expected.divergence)
        np.testing.assert_allclose(row["rise"], expected.rise)
        assert (row["expected"], row["expected_by_scores"]) == pytest.approx(
            (expected.expected, expected.expected_by_scores)
        )
        own = next(one for one in result["plans"] if (one["criterion"], one["scope"]) == (name, "global"))
        assert own["digest"] == expected.plan.digest
        assert list(own["kept_per_layer"].values()) == row["chosen"]
        randoms = contest_of(expected.plan, model.shape, plans=20, seed=0).randoms
        assert own["random"]["digests"] == [one.digest for one in randoms]
        assert {tuple(one.counts.values()) for one in randoms} == {tuple(row["chosen"])}
        if name == "reap":
            assert Plan.read(out / "plan.json") == expected.plan
    assert len({tuple(row["chosen"]) for row in result["allocations"]}) == 2, (
        "the recipe tells rankings apart"
    )
    layered = [one for one in result["plans"] if one["scope"] == "layer"]
    assert [set(one["kept_per_layer"].values()) for one in layered] == [{4}]


def test_what_is_printed_and_written(recipe_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = [part for one in (*REFITTED, "criteria=reap") for part in ("--set", one)]
    done = invoke("prune", recipe_path, "-o", out, *options)
    assert done.exit_code == 0, done.output
    (row,) = json.loads((out / "validation.json").read_text())["allocations"]
    for file in (out / "report.md", out / "checkpoint" / "README.md"):
        text = file.read_text()
        assert "each layer refitted on one half of the refit's text" in text
        assert f"| {' '.join(map(str, row['by_scores']))} | {' '.join(map(str, row['chosen']))} |" in text
    assert "scope=global counts=refitted" in (out / "checkpoint" / "README.md").read_text()
    with (out / "allocation.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    measured = [(int(line["layer"]), int(line["experts"])) for line in lines]
    assert measured == [(layer, count) for layer in row["layers"] for count in row["measured"]]
    assert [float(line["kl"]) for line in lines] == [value for own in row["kl"] for value in own]
    assert [int(line["chosen"]) for line in lines[:: len(row["measured"])]] == row["chosen"]
    assert yaml.safe_load((out / "recipe.yaml").read_text())["prune"]["counts"] == "refitted"


def test_without_it_nothing_is_said(recipe_path: Path, tmp_path: Path) -> None:
    result = execute(recipe_path, tmp_path / "run", "prune.scope=global", "criteria=reap")
    assert result["allocations"] == []
    assert not (tmp_path / "run" / "allocation.csv").exists()
    assert "Counts per layer" not in (tmp_path / "run" / "report.md").read_text()


def test_nothing_is_measured_again(
    recipe_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the last layer, the run goes on there; finished, it measures nothing."""
    whole = execute(recipe_path, tmp_path / "whole", *REFITTED, "criteria=reap")
    monkeypatch.setenv("EXCISE_CACHE", str(tmp_path / "empty"))
    measured: list[int] = []
    measure = costs.costs_of

    def until_layer_2(anatomy: Any, cuts: list[Cut], *rest: Any) -> list[tuple[float, float]]:
        if cuts[0].row == 2 and 2 not in measured:
            measured.append(2)
            raise Killed
        measured.append(cuts[0].row)
        return measure(anatomy, cuts, *rest)

    monkeypatch.setattr(costs, "costs_of", until_layer_2)
    out = tmp_path / "run"
    with pytest.raises(Killed):
        execute(recipe_path, out, *REFITTED, "criteria=reap")
    assert execute(recipe_path, out, *REFITTED, "criteria=reap")["plans"] == whole["plans"]
    assert measured == [0, 1, 2, 2]
    monkeypatch.setattr(allocations, "measure_cuts", None)
    again = execute(recipe_path, out, *REFITTED, "criteria=reap", "validate.random_plans=21")
    assert again["allocations"] == whole["allocations"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["prune.scope=layer"], "counts: refitted belongs to scope: global"),
        (["refit=null"], "prune.counts: refitted needs `refit`.*add `refit: {}`, or take counts: scores"),
        (["prune.counts=refit"], "prune.counts"),
        (["calibration.sequences=2"], "text has 2 windows; counts per layer need at least 3"),
    ],
)
def test_refusals(recipe_path: Path, tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ExciseError, match=message):
        execute(recipe_path, tmp_path / "run", *REFITTED, *overrides)
    assert not list((tmp_path / "run").glob("*")), "refused before any work"


def test_where_nothing_is_left_to_choose(
    recipe_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every layer at its floor: nothing is measured, and a note says why."""
    monkeypatch.setattr(allocations, "measure_cuts", None)
    session = Session(
        prepare(read_recipe(recipe_path, [*REFITTED, "prune.fraction=0.625"]), tmp_path / "run")
    )
    plans, notes = allocations.Allocations(session), list[str]()
    monkeypatch.setattr(allocations, "tell", notes.append)
    budget = session.prepared.budgets["global"]
    [scores, _] = session.scores(budget)
    assert set(plans.plan(scores, budget).counts.values()) == {3}
    assert not plans.made
    assert "every layer has to keep 3 experts, so there are no counts to choose" in notes[0]


def test_a_model_that_cannot_be_refitted(recipe_path: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Where a refit is made only if possible, scores decide the counts."""
    by_scores = execute(recipe_path, tmp_path / "plain", "prune.scope=global", "criteria=reap")

    def refuse(*_: Any) -> None:
        raise ExciseError("not this one")

    monkeypatch.setattr("prune.run.pipeline.check_refit", refuse)
    options = (*REFITTED, "refit.if_possible=true", "criteria=reap")
    found = execute(recipe_path, tmp_path / "run", *options)
    assert found["allocations"] == []
    assert found["plans"][0]["digest"] == by_scores["plans"][0]["digest"]


def test_a_refit_that_is_refused_before_the_work_takes_its_counts_along(
    recipe_path: Path, tmp_path: Path
) -> None:
    """One window cannot be halved: scores decide the counts, as they do without a refit."""
    one = ("calibration.sequences=1", "criteria=reap")
    found = execute(recipe_path, tmp_path / "run", *REFITTED, "refit.if_possible=true", *one)
    by_scores = execute(recipe_path, tmp_path / "plain", "prune.scope=global", *one)
    assert found["allocations"] == []
    assert found["plans"][0]["digest"] == by_scores["plans"][0]["digest"]


def test_the_forecast_counts_the_cuts(recipe_path: Path, tmp_path: Path) -> None:
    checked = checked_for("prune", read_recipe(recipe_path, REFITTED), tmp_path / "run")
    found = forecast("prune", checked)
    (stage,) = [one for one in found["stages"] if one["stage"] == "counts per layer"]
    # Two rankings, three layers, counts 3 to 7: half of 8 windows through 1 + (3, 2, 1) of 3 layers each;
    # beside each layer the whole model, on half of the text, and on the other half as far as the layer: ~1.
    assert stage["windows"] == 2 * (5 * 4 * (9 / 3) + 3 * 6)
    assert "2 rankings × 3 layers × 5 counts" in stage["detail"]
    assert "allocation.csv" in found["writes"]
    plain = forecast("prune", checked_for("prune", read_recipe(recipe_path), tmp_path / "run"))
    assert "counts per layer" not in [one["stage"] for one in plain["stages"]]
