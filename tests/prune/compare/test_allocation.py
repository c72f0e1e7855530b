"""`prune.counts: refitted` in `excise compare`: in scope global every ranking gets counts of its own."""

import json
from pathlib import Path

import yaml

from tests.support.recipes import invoke


def test_every_ranking_at_every_budget(recipe_path: Path, tmp_path: Path) -> None:
    data = yaml.safe_load(recipe_path.read_text())
    data["prune"] |= {"scope": "global", "counts": "refitted"}
    data["validate"] |= {"random_plans": 20, "chance": "normal"}
    data["compare"] = {"seeds": 2}
    data |= {"refit": {"lambda": 0.1}, "criteria": ["reap", "utilization"]}
    recipe_path.write_text(yaml.safe_dump(data))
    done = invoke("compare", recipe_path, "-o", tmp_path / "c")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    rows = {(row["criterion"], row["fraction"]): row for row in result["allocations"]}
    assert rows.keys() == {("reap", 0.5), ("utilization", 0.5)}
    for plan in result["plans"]:
        row = rows[plan["criterion"], plan["fraction"]]
        assert list(plan["kept_per_layer"].values()) == row["chosen"]
    assert {row["seeds"] for row in result["stability"]} == {2}
    assert "Kept per layer, chosen by what is left" in (tmp_path / "c" / "comparison.md").read_text()
    assert len((tmp_path / "c" / "allocation.csv").read_text().splitlines()) == 1 + 2 * 3 * 5
