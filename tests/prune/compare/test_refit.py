"""Criteria head to head, before and after the refit of all plans."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from prune.compare.report import tables
from tests.support.recipes import invoke


@pytest.fixture
def compared(recipe_path: Path, tmp_path: Path) -> tuple[dict[str, Any], Path]:
    data = yaml.safe_load(recipe_path.read_text())
    data["validate"] |= {"random_plans": 20, "chance": "normal"}
    data |= {"criteria": ["reap", "utilization"], "compare": {"seeds": 1}, "refit": {"lambda": 0.1}}
    recipe_path.write_text(yaml.safe_dump(data))
    done = invoke("compare", recipe_path, "-o", tmp_path / "c")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout), tmp_path / "c"


def rises(path: Path) -> dict[str, float]:
    """Digest -> mean rise of the loss over the unpruned model, from the raw rows alone."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    values = {
        digest: np.average(
            [float(row["loss"]) for row in rows if row["digest"] == digest],
            weights=[float(row["tokens"]) for row in rows if row["digest"] == digest],
        )
        for digest in {row["digest"] for row in rows}
    }
    return {digest: value - values["full"] for digest, value in values.items()}


def test_before_and_after(compared: tuple[dict[str, Any], Path]) -> None:
    """Figures follow from the raw rows; the same random plans are there before and after."""
    result, out = compared
    before, after = rises(out / "losses.csv"), rises(out / "refitted_losses.csv")
    assert before.keys() == after.keys()
    for plan in result["plans"]:
        assert plan["delta"] == pytest.approx(before[plan["digest"]], abs=1e-12)
        assert plan["refit"]["delta"] == pytest.approx(after[plan["digest"]], abs=1e-12)
        assert plan["refit"]["reversed_delta"] == pytest.approx(after[plan["reversed_digest"]], abs=1e-12)
        randoms = plan["refit"]["random"]
        assert randoms["digests"] == plan["random"]["digests"]
        np.testing.assert_allclose(randoms["values"], [after[digest] for digest in randoms["digests"]])
        gain = before[plan["digest"]] - after[plan["digest"]]
        assert plan["refit"]["gain"] == pytest.approx(gain, abs=1e-12)


def test_tables_and_rows(compared: tuple[dict[str, Any], Path]) -> None:
    result, out = compared
    (shown,) = [table for table in tables(result) if table.title.startswith("After the refit, of random")]
    best_first = sorted(result["plans"], key=lambda plan: plan["refit"]["delta"])
    assert [row[0] for row in shown.rows] == [plan["criterion"] for plan in best_first]
    assert any(table.title.startswith("After the refit: Which differ") for table in tables(result))
    assert len(result["refit"]["pairs"]) == len(result["pairs"]) == 1
    with (out / "comparison.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["state"] == "refitted"]
    assert [float(row["delta"]) for row in rows] == [plan["refit"]["delta"] for plan in result["plans"]]
    assert "After the refit (" in (out / "comparison.md").read_text()
