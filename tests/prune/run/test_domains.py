"""Verdicts by domain in what `excise prune` prints and writes."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from prune.console.cli import app
from tests.support.counting import counted
from tests.support.recipes import execute, invoke
from tests.support.texts import DOCUMENTS, write_words
from validate.rows import LossEvaluator
from validate.verdict import DOMAIN_RULE


@pytest.fixture
def by_domain(recipe_path: Path) -> Path:
    """Validation text of two domains, and random plans enough for both."""
    data = yaml.safe_load(recipe_path.read_text())
    write_words(recipe_path.parent / "other.txt", 900, np.random.default_rng(3))
    data["validate"]["data"] = [
        {"text": [f"{name}.txt"], "separator": DOCUMENTS, "domain": name} for name in ("test", "other")
    ]
    data["validate"]["random_plans"] = 39
    recipe_path.write_text(yaml.safe_dump(data))
    return recipe_path


def test_everything_that_is_read_names_the_worst_domain(by_domain: Path, tmp_path: Path) -> None:
    """Terminal, report and model card have the sentence and the table; the rule says what is corrected."""
    out = tmp_path / "run"
    printed = CliRunner().invoke(app, ["prune", str(by_domain), "-o", str(out), "--quiet"]).stdout
    result = json.loads((out / "validation.json").read_text())
    first = result["plans"][0]
    assert f"Worst domain: {first['domains'][0]['name']}, ΔCE" in first["conclusion"]
    assert DOMAIN_RULE in result["rule"]
    report, card = (out / "report.md").read_text(), (out / "checkpoint" / "README.md").read_text()
    for text in (printed, report, card):
        assert first["conclusion"] in text
        assert "after Holm over domains" in text
    for text in (report, card):
        assert DOMAIN_RULE in text
        assert [f"  - in {part['name']}, unpruned" in text for part in first["domains"]] == [True, True]
    again = json.loads(invoke("prune", by_domain, "-o", out).stdout)
    assert again["plans"] == result["plans"]


def test_domains_are_those_of_the_raw_rows(by_domain: Path, tmp_path: Path) -> None:
    result = execute(by_domain, tmp_path / "run")
    with (tmp_path / "run" / "losses.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for plan in result["plans"]:
        for part in plan["domains"]:
            assert part["delta"] == pytest.approx(
                mean_loss(rows, plan["digest"], part["name"]) - mean_loss(rows, "full", part["name"])
            )
    assert len(result["plans"][0]["domains"]) == 2


def mean_loss(rows: list[dict[str, str]], digest: str, domain: str) -> Any:
    mine = [row for row in rows if (row["digest"], row["domain"]) == (digest, domain)]
    return np.average([float(row["loss"]) for row in mine], weights=[int(row["tokens"]) for row in mine])


def test_a_run_of_one_domain_says_nothing_of_domains(recipe_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    printed = CliRunner().invoke(app, ["prune", str(recipe_path), "-o", str(out), "--quiet"]).stdout
    result = json.loads((out / "validation.json").read_text())
    assert [plan["domains"] for plan in result["plans"]] == [[], []]
    for text in (printed, (out / "report.md").read_text(), (out / "checkpoint" / "README.md").read_text()):
        assert "after Holm over domains" not in text
        assert "Worst domain" not in text
        assert DOMAIN_RULE not in text


def test_a_folder_of_an_earlier_version_gets_its_domains(
    by_domain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its result has no domains and its raw rows no such column: no plan is measured again."""
    out = tmp_path / "run"
    first = execute(by_domain, out)
    as_before(out)
    plans: list[Any] = []
    measure = LossEvaluator.measure
    monkeypatch.setattr(
        LossEvaluator,
        "measure",
        lambda self, anatomy, asked: (plans.extend(asked), measure(self, anatomy, asked))[1],
    )
    calls = counted(monkeypatch)
    assert execute(by_domain, out) == first
    assert plans == []
    assert calls["export"] == calls["observe"] == 0
    assert "domain" in (out / "losses.csv").read_text().partition("\n")[0]


def as_before(out: Path) -> None:
    """Rewrite a run folder as the version before left it."""
    result = json.loads((out / "validation.json").read_text())
    for plan in result["plans"]:
        del plan["domains"], plan["conclusion"]
    (out / "validation.json").write_text(json.dumps(result))
    stages = json.loads((out / "stages.json").read_text())
    (out / "stages.json").write_text(json.dumps(stages | {"validate": "of another version"}))
    with (out / "losses.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    with (out / "losses.csv").open("w", newline="") as file:
        columns = [column for column in rows[0] if column != "domain"]
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
