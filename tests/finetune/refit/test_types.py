"""Every type that can be refitted: the written checkpoint is the refitted model, and nothing else changed."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import prune
from experts.errors import ExciseError
from finetune.distill.settings import Local
from finetune.refit_model import refit_experts, refitted
from prune.checkpoint.export_model import refitted_weights
from tests.finetune.refit.test_refit import opened
from tests.support import architectures, tiny
from tests.support.architecture_table import CANNOT, REFUSED
from tests.support.sweeps import random_plans, windows

TYPES = [name for name in architectures.types() if name not in REFUSED]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as stored:
            found |= {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "local", [None, Local(steps=10, tokens=64, lr=3e-5, router_lr=6e-5)], ids=["refitted", "trained"]
)
@pytest.mark.parametrize("name", TYPES)
def test_written(name: str, local: Local | None, tmp_path: Path) -> None:
    model = opened(tiny.save(architectures.build(name).eval(), tmp_path / "model"))
    plan = random_plans(model.anatomy, 1)[0]
    ridge = None if local is None else 30.0  # leaves the training something to do on so little text
    try:
        refit = refit_experts(model, plan, windows(8, 32), fewest=0, ridge=ridge, local=local)
    except ExciseError as refusal:
        if CANNOT not in str(refusal):
            raise
        pytest.skip(str(refusal))
    if local is not None:
        assert any(layer.others for layer in refit.layers)
    with refitted(model, refit):
        expected = tiny.logits(model.network)
    prune.export(model, plan, tmp_path / "refitted", refit=refit)
    prune.export(model, plan, tmp_path / "plain")
    written = type(model.network).from_pretrained(tmp_path / "refitted").eval()
    assert torch.equal(tiny.logits(written), expected)
    before, after = tensors(tmp_path / "plain"), tensors(tmp_path / "refitted")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert changed <= refitted_weights(model, refit, tmp_path / "weights").changed.keys()
