"""The refit of whole models: dense by hand, nothing else touched, streamed as resident, written to disk."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import prune
from criteria.text.windows import Windows
from experts.ablation import restricted
from experts.anatomy import dissect
from experts.disk.layout import lay_out
from experts.disk.shards import open_checkpoint
from experts.errors import ExciseError
from experts.inner_activations import DOWN
from experts.interventions import ablated
from experts.memory_settings import MemorySettings
from experts.model import Model
from experts.plan import Plan
from finetune.refit.blocks import Blocks
from finetune.refit.equations import Equations
from finetune.refit.joint import Joint
from finetune.refit.layer import LayerRefit
from finetune.refit.passage import Passage
from finetune.refit.result import Refit
from finetune.refit_model import refit_experts, refitted
from tests.support import tiny
from tests.support.by_hand import features_by_hand, stream_after
from tests.support.quantised import to_fp8
from tests.support.sweeps import windows
from validate.loss import window_losses

TEXT = windows(8, 32)
UNEQUAL = (0, 1, 2, 3, 6), (1, 3, 5, 7)


def opened(folder: Path, mode: Any = "resident") -> Model:
    return Model(lay_out(open_checkpoint(folder)), memory=MemorySettings(mode))


def plan_of(model: Model, *kept: tuple[int, ...]) -> Plan:
    """The same experts in every layer, or others layer by layer."""
    ids = kept or ((0, 2, 4, 5),)
    layers = model.shape.layers
    return Plan(model.shape.num_experts, {layer: ids[row % len(ids)] for row, layer in enumerate(layers)})


@pytest.fixture(scope="module")
def olmoe(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return opened(tiny.save(tiny.build("olmoe"), tmp_path_factory.mktemp("refit") / "model"))


@pytest.fixture(scope="module")
def refit(olmoe: Model) -> Refit:
    return refit_experts(olmoe, plan_of(olmoe), TEXT)


def state(model: Model) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.network.state_dict().items()}


def test_the_lowest_layer_is_a_dense_least_squares_solution() -> None:
    """By numpy in float64, from plain forwards."""
    network = tiny.build("olmoe", num_hidden_layers=1).double()
    network.set_experts_implementation("batched_mm")
    anatomy, kept, ridge = dissect(network), (0, 2, 4, 5), 0.1
    plan = Plan(8, {0: kept})
    tokens = TEXT.tensor("cpu")
    clean = stream_after(anatomy, 0, tokens)
    with restricted(anatomy, plan):
        pruned, features = stream_after(anatomy, 0, tokens), features_by_hand(anatomy, 0, kept, tokens)
    gram = features.T @ features
    shifted = gram + ridge * np.diag(gram).mean() * np.eye(len(gram))
    change = np.linalg.solve(shifted, features.T @ (clean - pruned))
    down = anatomy.layers[0].experts.get_parameter(DOWN).detach().numpy()
    expected = down[list(kept)] + change.reshape(4, -1, clean.shape[1]).transpose(0, 2, 1)
    with torch.no_grad():
        passage = Passage(anatomy, plan, TEXT, 2)
        found = LayerRefit(passage, 0, ridge, 0, Joint).run(last=True)
    np.testing.assert_allclose(found.weights.numpy(), expected, rtol=1e-9, atol=1e-12)
    assert found.before == pytest.approx(np.square(clean - pruned).sum())
    assert found.after == pytest.approx(np.square(clean - pruned - features @ change).sum())


def test_the_stream_comes_closer(olmoe: Model, refit: Refit) -> None:
    """What the equations promise is what the refitted model does, layers below included."""
    tokens = TEXT.tensor("cpu")
    for row, layer in enumerate(refit.layers):
        clean = stream_after(olmoe.anatomy, row, tokens)
        with refitted(olmoe, refit):
            found = stream_after(olmoe.anatomy, row, tokens)
        distance = np.square(clean.astype(np.float64) - found).sum()
        assert distance == pytest.approx(layer.after, rel=1e-3)
        assert layer.after <= layer.before


def test_the_batch_moves_rounding_only(olmoe: Model) -> None:
    """The halves on which λ is chosen are those of the text, however many windows a forward takes."""
    one, *others = [refit_experts(olmoe, plan_of(olmoe), TEXT, batch=batch) for batch in (1, 2, 8)]
    assert len({layer.ridge for layer in one.layers} - {np.inf}) > 0
    for other in others:
        assert [layer.ridge for layer in other.layers] == [layer.ridge for layer in one.layers]
        for found, expected in zip(other.layers, one.layers, strict=True):
            torch.testing.assert_close(found.weights, expected.weights, rtol=1e-4, atol=1e-6)


def test_nothing_else_is_touched(olmoe: Model) -> None:
    before = state(olmoe)
    refit = refit_experts(olmoe, plan_of(olmoe), TEXT)
    with refitted(olmoe, refit):
        inside = state(olmoe)
    after = state(olmoe)
    assert all(torch.equal(before[name], after[name]) for name in before)
    changed = {name for name in before if not torch.equal(before[name][: len(inside[name])], inside[name])}
    assert {name.rpartition(".")[2] for name in changed} == {DOWN, "weight"}  # and rows of routers
    for row, layer in enumerate(olmoe.anatomy.layers):
        name = f"model.layers.{row}.mlp.experts.{DOWN}"
        gone = [expert for expert in range(8) if expert not in refit.plan.kept[layer.index]]
        assert torch.equal(inside[name][gone], before[name][gone])


def test_the_same_numbers_again(olmoe: Model, refit: Refit) -> None:
    again = refit_experts(olmoe, plan_of(olmoe), TEXT)
    assert again.digest == refit.digest
    for one, other in zip(again.layers, refit.layers, strict=True):
        assert torch.equal(one.weights, other.weights)


def test_streamed_is_resident(olmoe: Model, refit: Refit) -> None:
    streamed = opened(olmoe.folder, "streamed")
    found = refit_experts(streamed, plan_of(streamed), TEXT)
    for one, other in zip(found.layers, refit.layers, strict=True):
        assert torch.equal(one.weights, other.weights)
        assert (one.ridge, one.before, one.after) == (other.ridge, other.before, other.after)


def test_expert_by_expert_is_all_at_once(olmoe: Model, refit: Refit, monkeypatch: pytest.MonkeyPatch) -> None:
    def closely(*sizes: Any) -> Equations:
        return Blocks(*sizes, close=1e-12)

    monkeypatch.setattr("finetune.refit.layers.SHARE", 0.0)
    monkeypatch.setattr("finetune.refit.layers.Blocks", closely)
    found = refit_experts(olmoe, plan_of(olmoe), TEXT)
    for one, other in zip(found.layers, refit.layers, strict=True):
        assert one.ridge == other.ridge
        torch.testing.assert_close(one.weights, other.weights, rtol=1e-4, atol=1e-6)


def test_padding_has_no_part(olmoe: Model) -> None:
    """Windows that end with padding are as if cut there."""
    short = windows(8, 20)
    tokens = np.concatenate([short.tokens, np.zeros((8, 12), np.int64)], axis=1)
    mask = np.arange(32)[None] < np.full((8, 1), 20)
    padded = Windows(tokens, mask, short.document, short.domain, short.documents, short.domains)
    found = refit_experts(olmoe, plan_of(olmoe), padded)
    expected = refit_experts(olmoe, plan_of(olmoe), short)
    for one, other in zip(found.layers, expected.layers, strict=True):
        assert one.rows == other.rows
        assert one.before == pytest.approx(other.before, rel=1e-3)
        torch.testing.assert_close(one.weights, other.weights, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kept", [((0, 2, 4, 5),), UNEQUAL], ids=["equal", "unequal"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_written_checkpoint_is_the_refitted_model(
    family: str, kept: tuple[tuple[int, ...], ...], tmp_path: Path
) -> None:
    """Logits bit by bit, with equal counts and with unequal ones."""
    model = opened(tiny.save(tiny.build(family), tmp_path / "model"))
    if model.shape.groups > 1:
        kept = ((0, 1, 4, 5),)
    plan = plan_of(model, *kept)
    refit = refit_experts(model, plan, TEXT)
    with refitted(model, refit):
        expected = tiny.logits(model.network)
    prune.export(model, plan, tmp_path / "out", refit=refit)
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=not plan.uniform)
    assert torch.equal(tiny.logits(written.eval()), expected)
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "refitted by least squares on 256 tokens" in card


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_loss_on_the_text_itself_falls(family: str, tmp_path: Path) -> None:
    """Against the unpruned model's own distribution: random weights know no text."""
    model = opened(tiny.save(tiny.build(family), tmp_path / "model"))
    plan = plan_of(model, (0, 1, 4, 5))
    clean = tiny.logits(model.network, TEXT.tensor("cpu")).double()
    with restricted(model.anatomy, plan):
        before = tiny.logits(model.network, TEXT.tensor("cpu")).double()
    with refitted(model, refit_experts(model, plan, TEXT)):
        after = tiny.logits(model.network, TEXT.tensor("cpu")).double()
    assert (after - clean).square().sum() < 0.9 * (before - clean).square().sum()


def test_another_precision_gets_what_a_file_would_hold(tmp_path: Path) -> None:
    """A refit of the model in bfloat16, in the same model in float32: the numbers of the former, exactly."""
    layout = lay_out(open_checkpoint(tiny.save(tiny.build("olmoe"), tmp_path / "olmoe")))
    coarse, exact = (Model(layout, dtype=dtype) for dtype in ("bfloat16", "float32"))
    refit = refit_experts(coarse, plan_of(coarse), TEXT, ridge=0.1)
    before = tiny.logits(exact.network)
    with refitted(exact, refit):
        for layer, change in zip(exact.anatomy.layers, refit.layers, strict=True):
            rows = layer.experts.get_parameter(DOWN)[list(refit.plan.kept[layer.index])]
            assert rows.dtype == torch.float32
            assert torch.equal(rows, change.weights.float())
    assert torch.equal(tiny.logits(exact.network), before)


def test_experts_that_few_tokens_go_to_stay(olmoe: Model, heard: list[str]) -> None:
    rows = refit_experts(olmoe, plan_of(olmoe), TEXT).layers[0].rows
    found = refit_experts(olmoe, plan_of(olmoe), TEXT, fewest=min(rows) + 1)
    few = int(np.argmin(rows))
    expert = plan_of(olmoe).kept[0][few]
    assert expert in found.layers[0].unchanged
    before = olmoe.anatomy.layers[0].experts.get_parameter(DOWN)[expert]
    assert torch.equal(found.layers[0].weights[few], before)
    assert f"too few tokens go to experts {expert}" in heard[0]


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    notes: list[str] = []
    monkeypatch.setattr("finetune.refit_model.tell", notes.append)
    return notes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ridge": 0.0}, "ridge is 0.0; λ is a number above 0"),
        ({"ridge": float("nan")}, "ridge is nan; λ is a number above 0"),
        ({"ridge": "auto"}, "ridge is auto; λ is a number above 0, or None"),
        ({"ridge": True}, "ridge is True; λ is a number above 0"),
        ({"text": windows(1)}, "text has 1 window; a refit needs at least 2"),
        ({"text": windows(2, 4)}, r"text: no expert gets as many tokens as it has inner units \(\d of 24\)"),
        ({"plan": Plan(16, {0: (1,), 1: (2,)})}, "experts"),
    ],
)
def test_bad_input(olmoe: Model, options: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"plan": plan_of(olmoe), "text": TEXT, **options}
    with pytest.raises(ExciseError, match=message):
        refit_experts(olmoe, given.pop("plan"), given.pop("text"), **given)


def test_another_plan_or_model_is_not_written(olmoe: Model, refit: Refit, tmp_path: Path) -> None:
    other = plan_of(olmoe, (0, 1, 2, 3))
    with pytest.raises(ExciseError, match="refit: its weights were refitted for another plan"):
        prune.export(olmoe, other, tmp_path / "out", refit=refit)
    stranger = opened(tiny.save(tiny.build("olmoe", seed=1), tmp_path / "stranger"))
    with pytest.raises(ExciseError, match="refit: its weights are of another model"):
        prune.export(stranger, refit.plan, tmp_path / "out", refit=refit)
    with pytest.raises(ExciseError, match="its weights are of another model"), refitted(stranger, refit):
        pass
    assert not (tmp_path / "out").exists()


def test_a_quantised_source_is_refitted_and_not_written(tmp_path: Path) -> None:
    """The refit works on dequantised numbers; FP8 cannot take them back."""
    folder = tmp_path / "model"
    tiny.save(tiny.build("deepseek_v3", hidden_size=160, moe_intermediate_size=136, kv_lora_rank=184), folder)
    to_fp8(folder)
    model = opened(folder)
    refit = refit_experts(model, plan_of(model, (0, 1, 4, 5)), windows(16, 64))
    assert all(layer.after < layer.before for layer in refit.layers)
    with pytest.raises(ExciseError, match=r"refit: .* is stored quantised.* start from an unquantised"):
        prune.export(model, refit.plan, tmp_path / "out", refit=refit)
    assert not (tmp_path / "out").exists()


def test_a_streamed_model_is_not_refitted_in_memory(olmoe: Model, refit: Refit) -> None:
    streamed = opened(olmoe.folder, "streamed")
    with pytest.raises(ExciseError, match="a refitted model needs the whole"), refitted(streamed, refit):
        pass


def test_the_held_out_loss_is_measured_inside(olmoe: Model, refit: Refit) -> None:
    plain = window_losses(olmoe.network, TEXT)
    with refitted(olmoe, refit):
        inside = window_losses(olmoe.network, TEXT)
    assert not np.array_equal(plain, inside)
    assert np.array_equal(plain, window_losses(olmoe.network, TEXT))


def test_a_model_under_an_intervention_is_refused(olmoe: Model) -> None:
    """What is fitted to it would pass for a refit of the model itself."""
    plan = plan_of(olmoe)
    with ablated(olmoe, {0: [0, 1]}), pytest.raises(ExciseError, match="under an intervention"):
        refit_experts(olmoe, plan, TEXT)
    with restricted(olmoe.anatomy, plan), pytest.raises(ExciseError, match="already restricted"):
        refit_experts(olmoe, plan, TEXT)
