"""A recipe with `refit`: every plan before and after it, and the refitted checkpoint."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from experts.ablation import restricted
from experts.plan import Plan
from finetune.refit_model import refit_experts, refitted
from prune.recipe.read import read_recipe
from prune.session.prepare import prepare
from prune.session.session import Session
from tests.support import tiny
from tests.support.recipes import execute
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
