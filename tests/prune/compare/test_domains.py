"""Verdicts by domain in what `excise compare` writes."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from prune.compare.report import conclusions, tables
from tests.support.recipes import invoke
from tests.support.texts import DOCUMENTS, write_words
from validate.verdict import DOMAIN_RULE


@pytest.fixture
def two_criteria(recipe_path: Path) -> Path:
    """At one budget, on validation text of two domains."""
    data = yaml.safe_load(recipe_path.read_text())
    write_words(recipe_path.parent / "other.txt", 900, np.random.default_rng(3))
    data["validate"]["data"] = [
        {"text": [f"{name}.txt"], "separator": DOCUMENTS, "domain": name} for name in ("test", "other")
    ]
    data["validate"] |= {"random_plans": 20, "chance": "normal"}
    data |= {"criteria": ["reap", "random"], "compare": {"seeds": 1}}
    recipe_path.write_text(yaml.safe_dump(data))
    return recipe_path


def test_domains_of_a_comparison(two_criteria: Path, tmp_path: Path) -> None:
    """A table, a sentence per plan, rows of comparison.csv; the worst domain of every plan comes first."""
    out = tmp_path / "c"
    done = invoke("compare", two_criteria, "-o", out)
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert DOMAIN_RULE in result["rule"]
    (by_domain,) = [table for table in tables(result) if "domain" in table.head]
    best_first = sorted(result["plans"], key=lambda plan: plan["delta"])
    expected = [(plan["criterion"], part["name"]) for plan in best_first for part in plan["domains"]]
    assert [(row[0], row[3]) for row in by_domain.rows] == expected
    assert len(expected) == 4
    text = (out / "comparison.md").read_text()
    assert len(list(conclusions(result))) == 2
    for line, plan in zip(
        conclusions(result), sorted(result["plans"], key=lambda p: p["delta"]), strict=True
    ):
        assert line == f"scope layer, 50% pruned: {plan['conclusion']}"
        assert f"Worst domain: {plan['domains'][0]['name']}" in line
        assert f"- {line}\n" in text
    with (out / "comparison.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["criterion"], row["domain"]) for row in rows] == [
        (plan["criterion"], name)
        for plan in result["plans"]
        for name in ("", *(part["name"] for part in plan["domains"]))
    ]
    parts = [part for plan in result["plans"] for part in (plan, *plan["domains"])]
    for row, part in zip(rows, parts, strict=True):
        assert (float(row["delta"]), row["verdict"]) == (part["delta"], part["verdict"])
        assert float(row["p_corrected"]) == part["p_corrected"]
