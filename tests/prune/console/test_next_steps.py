"""The three lines below a finished run hold for what was written."""

from pathlib import Path
from typing import Any

import pytest

from prune.console.next_steps import next_steps
from prune.recipe.read import read_recipe
from prune.session.prepare import prepare
from prune.session.prepared import Prepared

UNEQUAL = {"0": 3, "1": 5}


def result_of(run: Path, counts: dict[str, int], checkpoint: bool = True) -> Any:
    return {
        "checkpoint": str(run / "checkpoint") if checkpoint else None,
        "plans": [{"kept_per_layer": counts}],
        "recovery": None,
    }


@pytest.fixture
def prepared(recipe_path: Path, tmp_path: Path) -> Prepared:
    return prepare(read_recipe(recipe_path), tmp_path / "run")


def test_equal_counts(prepared: Prepared, capsys: pytest.CaptureFixture[str]) -> None:
    next_steps(result_of(prepared.folder.path, {"0": 4, "1": 4}), prepared, "my.yaml")
    shown = capsys.readouterr().out
    assert f"serve   transformers serve {prepared.folder.path}/checkpoint" in shown
    assert "vllm serve: untried" in shown
    assert "trust_remote_code" not in shown
    assert "excise compare my.yaml --set validate.random_plans=39" in shown


def test_unequal_counts(prepared: Prepared, capsys: pytest.CaptureFixture[str]) -> None:
    next_steps(result_of(prepared.folder.path, UNEQUAL), prepared, None)
    shown = capsys.readouterr().out
    assert "trust_remote_code=True" in shown
    assert "equal counts" in shown
    assert "recipe.yaml -o" in shown


def test_a_run_that_stopped(prepared: Prepared, capsys: pytest.CaptureFixture[str]) -> None:
    next_steps(result_of(prepared.folder.path, UNEQUAL, checkpoint=False), prepared, "my.yaml")
    shown = capsys.readouterr().out
    assert "load" not in shown
    assert "compare" in shown
