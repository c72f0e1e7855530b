"""Recovery that begins from refitted models: the criterion's and random ones."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from experts.errors import ExciseError
from prune.recipe.read import read_recipe
from prune.recover.recovery import recover_folder
from prune.session.prepare import prepare
from tests.support.recipes import execute


def test_training_begins_where_the_refit_ended(recovery_recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = ("refit={}", "finetune.targets=router_only", "finetune.random_plans=3")
    result = execute(recovery_recipe, out, *options)
    written = result["plans"][0]
    begun = [plan["measures"][0]["before"] for plan in result["recovery"]["plans"]]
    refitted = [written["refit"]["delta"], *written["refit"]["random"]["values"][:3]]
    assert begun == pytest.approx(refitted, abs=1e-12)
    pruned, recovered = (load_file(out / name / "model.safetensors") for name in ("checkpoint", "recovered"))
    moved = {name for name in pruned if not torch.equal(pruned[name], recovered[name])}
    assert moved
    assert all("gate.weight" in name for name in moved), "refitted down projections stay as they are"
    provenance = json.loads((out / "recovered" / "excise_recovery.json").read_text())
    assert {"plan", "training", "refit"} <= provenance.keys()
    assert "refitted by least squares" in (out / "recovered" / "README.md").read_text()
    _from_the_folder(recovery_recipe, out, tmp_path, *options)


def _from_the_folder(recipe: Path, run: Path, tmp_path: Path, *options: str) -> None:
    """The same from the pruned folder alone; refused without the refit, and where its bytes were edited."""
    given = [*options, f"finetune.checkpoint={run / 'checkpoint'}"]
    again = recover_folder(prepare(read_recipe(recipe, given), tmp_path / "again"))
    kept = json.loads((run / "recovery.json").read_text())
    assert [plan["measures"] for plan in again["plans"]] == [plan["measures"] for plan in kept["plans"]]
    with pytest.raises(ExciseError, match="was refitted on other text or with other settings"):
        recover_folder(prepare(read_recipe(recipe, [*given, "refit.lambda=2"]), tmp_path / "other"))
    with pytest.raises(ExciseError, match="was refitted; give the recipe the same `refit`"):
        recover_folder(prepare(read_recipe(recipe, [*given, "refit=null"]), tmp_path / "without"))
    weights = run / "checkpoint" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ExciseError, match="edited since"):
        recover_folder(prepare(read_recipe(recipe, given), tmp_path / "edited"))


def test_a_shared_teacher_is_refused(recovery_recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(ExciseError, match="teacher.keep: memory shares the weights"):
        execute(recovery_recipe, tmp_path / "run", "refit={}", "finetune.teacher.keep=memory")
