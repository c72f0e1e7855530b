"""A recipe with `refit`: every plan before and after it, and the refitted checkpoint."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from experts.ablation import restricted
from experts.disk.shards import open_checkpoint
from experts.errors import ExciseError
from experts.plan import Plan
from finetune import refit_losses
from finetune.refit_model import refit_experts, refitted
from prune.console.cli import app
from prune.recipe.read import read_recipe
from prune.run import pruned_folder
from prune.session import refits
from prune.session.prepare import prepare
from prune.session.session import Session
from tests.support import tiny
from tests.support.interruptions import killed
from tests.support.quantised import to_mxfp4
from tests.support.recipes import execute, write_recipe
from tests.support.tasks import task_file
from validate.loss import window_losses


def test_before_and_after(recipe_path: Path, tmp_path: Path) -> None:
    """Both figures of every plan are those of plain forwards, and the checkpoint is the refitted model."""
    out = tmp_path / "run"
    result = execute(recipe_path, out, "refit={}")
    plan = Plan.read(out / "plan.json")
    session = Session(prepare(read_recipe(recipe_path), tmp_path / "other"))
    texts, model = session.texts, session.model
    clean = window_losses(model.network, texts.validation)
    weights = texts.validation.readable.sum(1)
    with restricted(model.anatomy, plan):
        before = np.average(window_losses(model.network, texts.validation) - clean, weights=weights)
    refit = refit_experts(model, plan, texts.calibration)
    with refitted(model, refit):
        after = np.average(window_losses(model.network, texts.validation) - clean, weights=weights)
        logits = tiny.logits(model.network)
    first = result["plans"][0]
    assert first["delta"] == pytest.approx(before, abs=1e-12)
    assert first["refit"]["delta"] == pytest.approx(after, abs=1e-12)
    assert first["refit"]["gain"] == pytest.approx(before - after, abs=1e-12)
    assert len(first["refit"]["random"]["values"]) == 20
    assert first["refit"]["random"]["digests"] == first["random"]["digests"]
    written = AutoModelForCausalLM.from_pretrained(result["checkpoint"], dtype=torch.float32)
    assert torch.equal(tiny.logits(written.eval()), logits)
    provenance = json.loads((out / "checkpoint" / "excise_recovery.json").read_text())
    assert provenance["refit"]["key"] == refit.key
    assert not (out / "refit").exists()


def test_a_refused_run_takes_nothing_away(recipe_path: Path, tmp_path: Path) -> None:
    """The folder holds a refitted checkpoint: a run without a refit is refused, and its rows stay."""
    out = tmp_path / "run"
    execute(recipe_path, out, "refit={}")
    rows = (out / "refitted_losses.csv").read_bytes()
    with pytest.raises(ExciseError, match=r"holds a checkpoint made with refit: \{\}, now None"):
        execute(recipe_path, out)
    assert (out / "refitted_losses.csv").read_bytes() == rows


def test_what_is_printed_and_written(recipe_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    printed = CliRunner().invoke(app, ["prune", str(recipe_path), "-o", str(out), "--refit"])
    assert printed.exit_code == 0, printed.output
    first = json.loads((out / "validation.json").read_text())["plans"][0]
    after = first["refit"]
    moved = f"After the refit (ΔCE {first['delta']:+.4f} → {after['delta']:+.4f}"
    for text in (printed.output, *(file.read_text() for file in (out / "report.md", card(out)))):
        assert moved in text
        assert after["survival"] in text
    assert "refitted by least squares on 512 tokens" in card(out).read_text()
    assert "No weight was changed" not in card(out).read_text()
    assert yaml.safe_load((out / "recipe.yaml").read_text())["refit"] == {}


def card(run: Path) -> Path:
    return run / "checkpoint" / "README.md"


def test_nothing_is_refitted_again(
    recipe_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before the export, the run takes up losses and weights, and ends with the same numbers."""
    whole = execute(recipe_path, tmp_path / "whole", "refit={}")
    out = tmp_path / "run"

    def run() -> dict[str, Any]:
        return execute(recipe_path, out, "refit={}")

    killed(monkeypatch, run, pruned_folder, "export", lambda *_: True)
    plain = shutil.copytree(out, tmp_path / "plain")
    execute(recipe_path, plain)
    assert not list(plain.glob("refit*")), "what is left of the refit says nothing of this run"
    assert len(list((out / "refit").iterdir())) == 1
    monkeypatch.setattr(refit_losses, "refit_plans", None)
    monkeypatch.setattr(refits, "refit_by", None)
    again = run()
    assert again["plans"] == whole["plans"]
    weights = [load_file(run / "checkpoint" / "model.safetensors") for run in (out, tmp_path / "whole")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


def test_a_folder_of_the_plan_without_a_refit(recipe_path: Path, tmp_path: Path) -> None:
    execute(recipe_path, tmp_path / "run")
    assert not list((tmp_path / "run").glob("refit*"))
    with pytest.raises(ExciseError, match=r"holds a checkpoint made with refit: None, now \{\}"):
        execute(recipe_path, tmp_path / "run", "refit={}")
    forced = execute(recipe_path, tmp_path / "run", "refit={}", force=True)
    assert "refitted by least squares" in card(tmp_path / "run").read_text()
    assert forced["plans"][0]["refit"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["refit.lambda=0"], "refit.lambda.*0 is no number above 0"),
        (["refit.lambda=x"], "refit.lambda.*x is no number above 0; take one like 0.1, or auto"),
        (["refit.lamda=1"], "unknown key 'refit.lamda'; did you mean 'lambda'?"),
        (["refit.text.data.text=[nowhere.txt]"], "refit.text.data names .*nowhere.txt: No such file"),
        (["refit.text.data.text=[test.txt]", "refit.text.sequences=8"], "refit and validation text overlap"),
        (["refit.text.data.text=[calibration.txt]"], "refit.text: data .* 128 windows of 512 tokens asked"),
        (["refit={}", "calibration.sequences=1"], "text has 1 window; a refit needs at least 2"),
        (
            ["refit={}", "prune.scope=global", "prune.counts=refitted", "calibration.sequences=2"],
            "text has 2 windows; counts per layer need at least 3: .*; raise calibration.sequences",
        ),
    ],
)
def test_bad_input(recipe_path: Path, tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ExciseError, match=message):
        execute(recipe_path, tmp_path / "run", *overrides)
    assert not (tmp_path / "run" / "validation.json").exists()


def test_streamed_is_resident(recipe_path: Path, tmp_path: Path) -> None:
    """The same plans, figures and bytes where the layers are read one by one."""
    resident = execute(recipe_path, tmp_path / "resident", "refit={}")
    streamed = execute(recipe_path, tmp_path / "streamed", "refit={}", "memory.model=streamed")
    assert streamed["plans"] == resident["plans"]
    runs = (tmp_path / "resident", tmp_path / "streamed")
    weights = [load_file(run / "checkpoint" / "model.safetensors") for run in runs]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


def test_tasks_after_the_refit(recipe_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Items are answered by the refitted models; streamed, that is refused before the work.

    The weights of the plan that is written are kept meanwhile, those of the others are not.
    """
    monkeypatch.setattr(refits.Refits, "forget", lambda _: None)
    folder = task_file(tmp_path / "task")
    tasks = [
        "refit.lambda=0.1",
        "validate.tasks.names=[guess]",
        f"validate.tasks.include={folder}",
        "validate.tasks.random_plans=5",
    ]
    with pytest.raises(ExciseError, match="answers of refitted plans .* needs the whole model"):
        execute(recipe_path, tmp_path / "streamed", *tasks, "memory.model=streamed")
    first = execute(recipe_path, tmp_path / "run", *tasks)["plans"][0]
    (before,), (after,) = first["tasks"], first["refit"]["tasks"]
    assert (before["name"], before["full"]) == (after["name"], after["full"])
    assert len(after["random"]["values"]) == 5
    rows = (tmp_path / "run" / "refitted_items.csv").read_text().splitlines()
    own = [float(row.rpartition(",")[2]) for row in rows[1:] if f",{first['digest']}," in row]
    assert np.mean(own) == pytest.approx(after["value"])
    assert [file.stem for file in (tmp_path / "run" / "refit").iterdir()] == [first["digest"]]


def test_a_quantised_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes are those of the checkpoint that is written, which is proven, and not written twice."""
    folder = tmp_path / "model"
    tiny.save(
        tiny.build("gpt_oss", num_hidden_layers=1, hidden_size=64, intermediate_size=32, head_dim=16), folder
    )
    to_mxfp4(folder)
    recipe = write_recipe(tmp_path, folder)
    asked = [
        "refit={dequantise: true, lambda: 0.1}",
        "dtype=auto",
        "criteria=[reap]",
        "calibration.sequences=4",
    ]
    result = execute(recipe, tmp_path / "run", *asked)
    size, before = (open_checkpoint(place).size for place in (tmp_path / "run" / "checkpoint", folder))
    assert result["plans"][0]["size"] == size > before
    assert result["size"] == {"before": before, "removed": before - size}
    assert "here their matrices are in bfloat16" in card(tmp_path / "run").read_text()
    monkeypatch.setattr(pruned_folder, "export", None)
    assert execute(recipe, tmp_path / "run", *asked)["plans"] == result["plans"]
