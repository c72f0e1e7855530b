"""A model in another precision than its checkpoint: what is judged in memory is what is written and read."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import experts
import finetune
import prune
from experts.plan import Plan
from finetune.distill.block import ROUTER
from finetune.refit.precision import Precision, precisions_of
from tests.support import tiny
from tests.support.inputs import windows


@pytest.mark.parametrize("local", [None, finetune.Local(steps=10)])
def test_stored_in_bfloat16_and_loaded_in_float32(tmp_path: Path, local: finetune.Local | None) -> None:
    """Bit-equal after it was reloaded: the refit is rounded to what the file can hold."""
    tiny.save(tiny.build("olmoe").to(torch.bfloat16), tmp_path / "model")
    model = experts.load(tmp_path / "model", dtype="float32", memory="resident")
    plan = Plan(8, dict.fromkeys(model.shape.layers, (0, 2, 3, 5)))
    refit = finetune.refit_experts(model, plan, windows(8), local=local)
    with finetune.refitted(model, refit):
        logits = tiny.logits(model.network)
    prune.export(model, plan, tmp_path / "pruned", refit=refit)
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned", dtype=torch.float32).eval()
    assert torch.equal(tiny.logits(written), logits)


def test_experts_and_router_have_their_own_precision(tmp_path: Path) -> None:
    network = tiny.build("olmoe").to(torch.bfloat16)
    tiny.save(network, tmp_path / "model")
    found = precisions_of(experts.load(tmp_path / "model").layout)
    assert set(found.values()) == {Precision(torch.bfloat16, torch.bfloat16)}
    third = torch.tensor([1 / 3])
    mixed = Precision(torch.bfloat16, None)
    assert mixed.rounded("down_proj", third).item() == 0.333984375  # 171/512: 8 bits of 1/3
    assert mixed.rounded(ROUTER, third).item() == third.item()
