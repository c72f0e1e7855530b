"""Refitted weights lie beside the checkpoint until it is proven: the room for them is asked for before."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from experts.disk.shards import read_header
from experts.errors import ExciseError
from experts.memory_settings import MemorySettings
from experts.model import Model
from experts.plan import Plan
from finetune.distill.settings import Local
from finetune.refit.stored import save_refit
from finetune.refit_model import refit_experts
from prune.checkpoint.output import BESIDE_TENSORS
from prune.checkpoint.refitted import refitted_weights
from prune.checkpoint.rehearsal import trial_plans
from prune.checkpoint.slices import pruned_size
from prune.recipe.read import read_recipe
from prune.session.checked import checked_for, rehearse
from prune.session.prepared import Checked
from prune.session.refit_room import refit_room
from tests.support import tiny
from tests.support.quantised import to_fp8, to_mxfp4
from tests.support.recipes import write_recipe
from tests.support.sweeps import windows
from tests.support.tasks import task_file


def gpt_oss(folder: Path) -> Path:
    tiny.save(tiny.build("gpt_oss", hidden_size=64, intermediate_size=32, head_dim=16), folder)
    to_mxfp4(folder)
    return folder


def deepseek(folder: Path) -> Path:
    tiny.save(tiny.build("deepseek_v3", hidden_size=136), folder)
    to_fp8(folder)
    return folder


def plain(family: str) -> Any:
    return lambda folder: tiny.save(tiny.build(family), folder)


LOCAL = "refit.local={steps: 10, tokens: 64, lr: 0.003, router_lr: 0.006}"
CASES: dict[str, tuple[Any, list[str]]] = {
    "experts one by one": (plain("qwen3_moe"), ["refit={}", "dtype=auto"]),
    "kept wider than stored": (
        lambda folder: tiny.save(tiny.build("mixtral").bfloat16(), folder),
        ["refit={}"],
    ),
    "trained": (plain("olmoe"), [LOCAL]),
    "fused": (plain("gpt_oss"), ["refit={}"]),
    "fused and trained": (plain("gpt_oss"), [LOCAL]),
    "mxfp4": (gpt_oss, ["refit.dequantise=true", "dtype=auto"]),
    "fp8": (deepseek, ["refit.dequantise=true", "dtype=bfloat16"]),
}


@pytest.mark.parametrize("name", CASES)
def test_the_bytes_of_the_files(name: str, tmp_path: Path) -> None:
    """As a refit is kept, and as its tensors wait for the export; headers are not counted."""
    build, overrides = CASES[name]
    recipe = read_recipe(write_recipe(tmp_path, build(tmp_path / "model")), overrides)
    checked = checked_for("prune", recipe, tmp_path / "run")
    model = Model(checked.layout, dtype=recipe.dtype, memory=MemorySettings("resident"))
    plan = Plan(8, dict.fromkeys(checked.shape.layers, (0, 1, 4, 5)))
    assert recipe.refit is not None
    local = None if recipe.refit.local is None else Local(**recipe.refit.local.model_dump())
    # A large ridge leaves the training something to do on so little text.
    refit = refit_experts(model, plan, windows(8, 32), ridge=30.0, local=local)
    assert local is None or all(len(layer.changed) > 2 for layer in refit.layers)
    save_refit(refit, tmp_path / "refit.safetensors")
    kept, _ = read_header(tmp_path / "refit.safetensors")
    written = refitted_weights(model, refit, tmp_path / "tensors", dequantise=checked.dequantises).changed
    sizes = [sum(tensor.size for tensor in tensors.values()) for tensors in (kept, written)]
    found = refit_room(checked.layout, plan, recipe, dequantise=checked.dequantises)
    assert found == sum(sizes)


def checked(recipe: Path, run: Path, *overrides: str) -> Checked:
    return checked_for("prune", read_recipe(recipe, overrides), run)


def free(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=size))


def test_a_disk_that_holds_the_checkpoint_alone(
    recipe_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One byte less is refused, and what an interrupted run left there is not asked for again."""
    given = checked(recipe_path, tmp_path / "run", "refit={}")
    plan = trial_plans(given.shape, given.budgets["layer"])[0]
    alone = pruned_size(given.layout, plan) + BESIDE_TENSORS
    beside = given.refit_room()
    assert beside > 0
    free(monkeypatch, alone)
    rehearse("prune", checked(recipe_path, tmp_path / "run"))
    with pytest.raises(ExciseError, match="needed, .* free"):
        rehearse("prune", given)
    free(monkeypatch, alone + beside)
    rehearse("prune", given)
    free(monkeypatch, alone + beside - 1)
    with pytest.raises(ExciseError, match="needed, .* free"):
        rehearse("prune", given)
    left = tmp_path / "run" / "refit"
    left.mkdir(parents=True)
    (left / "a.safetensors").write_bytes(b"x")
    rehearse("prune", given)


def test_tasks_keep_no_more_refits(recipe_path: Path, tmp_path: Path) -> None:
    """Answers of random plans are kept, their weights are not."""
    tasks = ["validate.tasks.names=[guess]", f"validate.tasks.include={task_file(tmp_path / 'task')}"]
    one = checked(recipe_path, tmp_path / "run", "refit={}")
    all_of_them = checked(recipe_path, tmp_path / "run", "refit={}", *tasks, "validate.tasks.random_plans=5")
    assert all_of_them.refit_room() == one.refit_room() > 0
