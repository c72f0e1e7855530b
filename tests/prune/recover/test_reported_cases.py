"""Situations from public reports, through whole commands: what a fine-tune leaves in a folder, and pruning
what was pruned before.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from tests.support import tiny
from tests.support.recipes import invoke


@pytest.fixture
def recipe(recovery_recipe: Path, tmp_path: Path, saved: dict[str, Path]) -> Path:
    """A recipe with recovery, of a model folder of its own."""
    data = yaml.safe_load(recovery_recipe.read_text())
    shutil.copytree(saved["olmoe"], tmp_path / "model")
    data["model"] = str(tmp_path / "model")
    recovery_recipe.write_text(yaml.safe_dump(data))
    return recovery_recipe


def succeeded(*arguments: object) -> dict[str, Any]:
    found = invoke(*arguments)
    assert found.exit_code == 0, found.stderr
    result: dict[str, Any] = json.loads(found.stdout)
    return result


def set_option(model: Path, **options: Any) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, **options}))


@pytest.mark.slow
@pytest.mark.parametrize("option", ["output_router_logits", "return_dict"])
def test_every_command_runs_a_model_with_options_of_a_fine_tune(
    option: str, recipe: Path, tmp_path: Path
) -> None:
    """Left behind by MoE fine-tunes; unequal counts per layer are exported, reloaded and run by plain
    transformers.
    """
    set_option(tmp_path / "model", **{option: option == "output_router_logits"})
    uneven = ("--set", "prune.scope=global", "--set", "finetune.random_plans=0")
    result = succeeded("finetune", recipe, "-o", tmp_path / "run", *uneven)
    assert (
        len({len(ids) for ids in json.loads((tmp_path / "run" / "plan.json").read_text())["kept"].values()})
        > 1
    )
    for folder in (tmp_path / "run" / "checkpoint", Path(result["checkpoint"])):
        model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
        assert model(input_ids=tiny.ids()).logits.isfinite().all()
    succeeded(
        "compare",
        recipe,
        "-o",
        tmp_path / "compare",
        "--set",
        "compare.seeds=1",
        "--set",
        "validate.chance=normal",
    )
    succeeded("audit", recipe, "-o", tmp_path / "audit", "--set", "validate.audit.positions=20")
    text = tmp_path / "test.txt"
    succeeded(
        "effects",
        tmp_path / "model",
        "--text",
        text,
        "-o",
        tmp_path / "e.csv",
        "--window",
        24,
        "--sequences",
        1,
    )


def test_numbers_do_not_depend_on_such_an_option(recipe: Path, tmp_path: Path) -> None:
    before = succeeded("prune", recipe, "-o", tmp_path / "one", "--set", "finetune=null")
    set_option(tmp_path / "model", output_router_logits=True)
    after = succeeded("prune", recipe, "-o", tmp_path / "two", "--set", "finetune=null")
    assert [plan["delta"] for plan in before["plans"]] == [plan["delta"] for plan in after["plans"]]
    assert before["loss"] == after["loss"]


@pytest.mark.slow
def test_prune_heal_prune_heal(recipe: Path, tmp_path: Path) -> None:
    """A recovered checkpoint is a model like any other: pruned again, recovered again from its folder; the
    history tells all of it.
    """
    first = succeeded(
        "finetune",
        recipe,
        "-o",
        tmp_path / "first",
        "--set",
        "prune.keep=6",
        "--set",
        "finetune.random_plans=0",
    )
    data = yaml.safe_load(recipe.read_text())
    data |= {"model": first["checkpoint"], "prune": {"keep": 4}}
    recipe.write_text(yaml.safe_dump(data))
    second = succeeded("prune", recipe, "-o", tmp_path / "second", "--set", "finetune=null")
    folder = Path(second["checkpoint"])
    assert not (folder / "excise_recovery.json").exists()
    healed = succeeded(
        "finetune",
        recipe,
        "-o",
        tmp_path / "third",
        "--set",
        f"finetune.checkpoint={folder}",
        "--set",
        "finetune.random_plans=0",
    )
    plan = json.loads((Path(healed["checkpoint"]) / "excise_plan.json").read_text())
    (step,) = plan["history"]
    assert {len(ids) for ids in step["plan"]["kept"].values()} == {6}
    assert step["recovery"]["training"]["steps"] == 4
    assert {len(ids) for ids in plan["kept"].values()} == {4}
    assert "then trained" in (folder / "README.md").read_text()
    model = AutoModelForCausalLM.from_pretrained(healed["checkpoint"])
    assert model.config.num_experts == 4
    with torch.no_grad():
        assert model(input_ids=tiny.ids()).logits.isfinite().all()
