"""Refit and local distillation of whole models: in memory, written, reloaded; never worse than the refit."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import prune
from experts.errors import ExciseError
from experts.inner_activations import DOWN
from experts.model import Model
from finetune.distill.block import ROUTER
from finetune.distill.settings import Local
from finetune.refit.result import Refit, weights_by_name
from finetune.refit_model import refit_experts, refitted
from prune.checkpoint.history import in_words, steps_of
from tests.finetune.refit.test_refit import TEXT, UNEQUAL, opened, plan_of, state
from tests.support import tiny

RIDGE = 30.0  # leaves the training something to do on so little text
LOCAL = Local(steps=10, tokens=64, lr=3e-3, router_lr=6e-3)


@pytest.fixture(scope="module")
def olmoe(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return opened(tiny.save(tiny.build("olmoe"), tmp_path_factory.mktemp("local") / "model"))


@pytest.fixture(scope="module")
def refit(olmoe: Model) -> Refit:
    return refit_experts(olmoe, plan_of(olmoe), TEXT, ridge=RIDGE, local=LOCAL)


def test_every_layer_comes_closer_on_unseen_tokens(refit: Refit) -> None:
    for layer in refit.layers:
        assert layer.distilled is not None
        assert layer.distilled.after < layer.distilled.before
        assert layer.changed.keys() == {DOWN, "gate_up_proj", ROUTER}


def test_it_begins_with_the_refit(olmoe: Model, refit: Refit) -> None:
    """The lowest layer is the same up to the training; with steps that are useless nothing else happens."""
    plain = refit_experts(olmoe, plan_of(olmoe), TEXT, ridge=RIDGE)
    lowest, trained = plain.layers[0], refit.layers[0]
    assert (lowest.ridge, lowest.before, lowest.after) == (trained.ridge, trained.before, trained.after)
    useless = refit_experts(olmoe, plan_of(olmoe), TEXT, ridge=RIDGE, local=Local(steps=3, lr=50.0))
    for one, other in zip(useless.layers, plain.layers, strict=True):
        assert one.distilled is not None
        assert one.distilled.step == 0
        assert not one.others
        assert torch.equal(one.weights, other.weights)
    assert len({plain.digest, refit.digest, useless.digest}) == 3


def test_the_same_numbers_again_streamed_too(olmoe: Model, refit: Refit) -> None:
    before = state(olmoe)
    streamed = opened(olmoe.folder, "streamed")
    for model in (olmoe, streamed):
        again = refit_experts(model, plan_of(model), TEXT, ridge=RIDGE, local=LOCAL)
        for one, other in zip(again.layers, refit.layers, strict=True):
            assert one.distilled == other.distilled
            assert one.changed.keys() == other.changed.keys()
            assert all(torch.equal(one.changed[name], other.changed[name]) for name in one.changed)
    after = state(olmoe)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_model_is_whole_afterwards(olmoe: Model, refit: Refit) -> None:
    before = state(olmoe)
    with refitted(olmoe, refit):
        assert not torch.equal(
            state(olmoe)["model.layers.0.mlp.experts.gate_up_proj"][0],
            before["model.layers.0.mlp.experts.gate_up_proj"][0],
        )
    after = state(olmoe)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("kept", [((0, 2, 4, 5),), UNEQUAL], ids=["equal", "unequal"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_written_checkpoint_is_the_trained_model(
    family: str, kept: tuple[tuple[int, ...], ...], tmp_path: Path
) -> None:
    model = opened(tiny.save(tiny.build(family), tmp_path / "model"))
    plan = plan_of(model, *(((0, 1, 4, 5),) if model.shape.groups > 1 else kept))
    refit = refit_experts(model, plan, TEXT, ridge=RIDGE, local=LOCAL)
    assert any(layer.others for layer in refit.layers)
    with refitted(model, refit):
        expected = tiny.logits(model.network)
    prune.export(model, plan, tmp_path / "out", refit=refit)
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=not plan.uniform)
    assert torch.equal(tiny.logits(written.eval()), expected)


def test_what_is_written_says_that_it_was_trained(olmoe: Model, refit: Refit, tmp_path: Path) -> None:
    prune.export(olmoe, refit.plan, tmp_path / "out", refit=refit)
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "were trained, layer by layer, for 10 steps of 64 tokens" in card
    assert "Nothing was trained" not in card
    said = json.loads((tmp_path / "out" / "excise_recovery.json").read_text(encoding="utf-8"))["refit"]
    assert said["local"] == {"steps": 10, "tokens": 64, "lr": 3e-3, "router_lr": 6e-3, "seed": 0}
    assert (
        said["weights"]
        == "down_proj of the kept experts, gate_up_proj of the kept experts, rows of the router"
    )
    assert [layer["trained"]["step"] for layer in said["layers"]] == [
        layer.distilled.step for layer in refit.layers if layer.distilled
    ]
    assert in_words(steps_of(tmp_path / "out")).endswith("then refitted and trained layer by layer")


def test_weights_have_their_names_in_the_network(olmoe: Model, refit: Refit) -> None:
    names = weights_by_name(olmoe.anatomy, refit)
    prefix = "model.layers.1.mlp"
    assert {f"{prefix}.gate.weight", f"{prefix}.experts.gate_up_proj", f"{prefix}.experts.down_proj"} <= set(
        names
    )
    assert torch.equal(names[f"{prefix}.gate.weight"], refit.layers[1].others[ROUTER])


def test_bad_input(olmoe: Model) -> None:
    with pytest.raises(ExciseError, match="local"):
        refit_experts(olmoe, plan_of(olmoe), TEXT, ridge=RIDGE, local={"steps": 3})  # type: ignore[arg-type]
