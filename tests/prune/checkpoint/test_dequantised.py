"""Refitted experts of quantised sources, written in bfloat16: what was in memory is what a reader gets."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.quantizers.quantizer_finegrained_fp8 import FineGrainedFP8HfQuantizer

import prune
from experts.ablation import restricted
from experts.disk.layout import Layout, lay_out
from experts.disk.shards import open_checkpoint, read_header
from experts.errors import ExciseError
from experts.memory_settings import MemorySettings
from experts.model import Model
from experts.plan import Plan
from finetune.distill.settings import Local
from finetune.refit.logits import refitted_logits
from finetune.refit_model import refit_experts
from prune.checkpoint.quantization import without
from prune.checkpoint.refit_storage import check_storable
from prune.checkpoint.slices import by_name, pruned_size, slice_layout
from prune.checkpoint.write import TrainedWeights, export
from tests.prune.checkpoint.test_formats import CONFIG, FORMATS, OTHERS, layers, write
from tests.support import tiny
from tests.support.quantised import to_fp8, to_mxfp4
from tests.support.sweeps import windows

TEXT = windows(8, 32)
EVEN, UNEVEN = ((0, 1, 4, 5),), ((0, 1, 2, 3, 6), (1, 3, 5, 7))
LOCAL = Local(steps=10, tokens=64, lr=3e-3, router_lr=6e-3)
FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def deepseek(folder: Path) -> Path:
    """Attention and a shared expert in FP8 too; no list of plain modules; blocks that are cut off."""
    tiny.save(tiny.build("deepseek_v3", hidden_size=136), folder)
    to_fp8(folder)
    return folder


def qwen(folder: Path) -> Path:
    """With a list of plain modules."""
    tiny.save(tiny.build("qwen3_moe", hidden_size=136), folder)
    to_fp8(folder)
    plain = ["lm_head", *(f"model.layers.{layer}.mlp.gate" for layer in range(3))]
    with_settings(folder, modules_to_not_convert=plain)
    return folder


def gpt_oss(folder: Path) -> Path:
    """Nothing but the experts is quantised."""
    tiny.save(tiny.build("gpt_oss", hidden_size=64, intermediate_size=32, head_dim=16), folder)
    to_mxfp4(folder)
    return folder


SOURCES: dict[str, Callable[[Path], Path]] = {"deepseek": deepseek, "qwen": qwen, "gpt_oss": gpt_oss}


def with_settings(folder: Path, **entries: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] |= entries
    path.write_text(json.dumps(config))


def opened(folder: Path, mode: Any = "resident", dtype: str = "auto") -> Model:
    return Model(lay_out(open_checkpoint(folder)), dtype=dtype, memory=MemorySettings(mode))


def plan_of(model: Model, kept: tuple[tuple[int, ...], ...] = EVEN) -> Plan:
    ids = {layer: kept[row % len(kept)] for row, layer in enumerate(model.shape.layers)}
    return Plan(model.shape.num_experts, ids)


def written(model: Model, plan: Plan, out: Path, local: Local | None = None) -> Tensor:
    """Refit and export; returns the logits that the refitted model has in memory."""
    ridge = 30.0 if local else 0.1  # a large one leaves the training something to do on so little text
    refit = refit_experts(model, plan, TEXT, ridge=ridge, local=local)
    assert local is None or any("gate_up_proj" in layer.changed for layer in refit.layers)
    result = prune.export(model, plan, out, refit=refit, dequantise=True)
    assert result.size == pruned_size(model.layout, plan, dequantise=True) == open_checkpoint(out).size
    return refitted_logits(model.anatomy, refit, TEXT)


def read_again(out: Path, plan: Plan) -> Tensor:
    """Logits of what transformers loads, nothing missing and nothing left over."""
    network, report = AutoModelForCausalLM.from_pretrained(
        out, trust_remote_code=not plan.uniform, output_loading_info=True
    )
    assert not any(report.values())
    assert network.dtype == torch.bfloat16
    with torch.no_grad():
        logits: Tensor = network.eval()(input_ids=TEXT.tensor("cpu")[:1], use_cache=False).logits
    return logits


@pytest.mark.parametrize(
    ("name", "kept", "mode", "local"),
    [
        *((name, EVEN, mode, None) for name in SOURCES for mode in ("resident", "streamed")),
        ("qwen", UNEVEN, "resident", None),
        ("gpt_oss", UNEVEN, "streamed", None),
        ("qwen", EVEN, "resident", LOCAL),
        ("gpt_oss", EVEN, "resident", LOCAL),
    ],
)
def test_what_is_read_again_is_what_was_judged(
    name: str, kept: tuple[tuple[int, ...], ...], mode: str, local: Local | None, tmp_path: Path
) -> None:
    """Bit by bit, and so once more where the new checkpoint is refitted itself."""
    model = opened(SOURCES[name](tmp_path / "model"), mode)
    plan = plan_of(model, kept)
    expected = written(model, plan, tmp_path / "out", local)
    assert torch.equal(read_again(tmp_path / "out", plan), expected)
    if plan.uniform and mode == "resident" and local is None:
        again = opened(tmp_path / "out")
        whole = plan_of(again, (tuple(range(4)),))
        expected = written(again, whole, tmp_path / "again")
        assert torch.equal(read_again(tmp_path / "again", whole), expected)


def test_fp8_beside_the_down_projections(tmp_path: Path) -> None:
    """Gates and ups are number \N{MULTIPLICATION SIGN} scale in bfloat16; all else has the source's bytes."""
    folder = tmp_path / "model"
    tiny.save(tiny.build("qwen3_moe", hidden_size=136), folder)
    meant = to_fp8(folder)
    model = opened(folder)
    plan = plan_of(model)
    written(model, plan, tmp_path / "out")
    before, after = (load_file(place / "model.safetensors") for place in (folder, tmp_path / "out"))
    for name, tensor in after.items():
        if ".experts." not in name:
            assert torch.equal(tensor.view(torch.uint8), before[name].view(torch.uint8)) or "gate" in name
            continue
        assert tensor.dtype == torch.bfloat16
        head, _, rest = name.partition(".experts.")
        number, _, tail = rest.partition(".")
        source = meant[f"{head}.experts.{EVEN[0][int(number)]}.{tail}"].bfloat16()
        assert torch.equal(tensor, source) is ("down_proj" not in name)
    assert not [name for name in after if ".experts." in name and "scale" in name]
    assert [name for name in after if "self_attn" in name and "scale" in name]


def test_mxfp4_beside_the_down_projections(tmp_path: Path) -> None:
    """Gates and ups by numpy: a sign, one of eight numbers, a power of two; biases keep their bytes."""
    model = opened(gpt_oss(tmp_path / "model"))
    plan = plan_of(model)
    written(model, plan, tmp_path / "out")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("model", "out"))
    name, kept = "model.layers.1.mlp.experts.gate_up_proj", list(EVEN[0])
    codes = before[f"{name}_blocks"].numpy()[kept]
    halves = np.stack([codes & 15, codes >> 4], axis=-1)
    numbers = FP4[halves & 7] * np.where(halves & 8, -1, 1)
    scales = before[f"{name}_scales"].numpy()[kept].astype(np.int32) - 127
    dequantised = np.ldexp(numbers.reshape(*codes.shape[:3], 32), scales[..., None])
    expected = dequantised.reshape(*codes.shape[:2], -1).transpose(0, 2, 1)
    np.testing.assert_array_equal(after[name].float().numpy(), expected)
    assert torch.equal(after[f"{name}_bias"], before[f"{name}_bias"][kept])
    assert not [name for name in after if name.endswith(("_blocks", "_scales"))]
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())


@pytest.mark.parametrize("name", ["deepseek", "qwen"])
def test_it_loads_in_native_fp8(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Experts and head in bfloat16, attention as it was. The library's check for a GPU is switched off."""
    model = opened(SOURCES[name](tmp_path / "model"))
    plan = plan_of(model)
    written(model, plan, tmp_path / "out")
    monkeypatch.setattr(FineGrainedFP8HfQuantizer, "validate_environment", lambda *_, **__: None)
    network, report = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values())
    layer: Any = network.model.layers[-1]
    assert layer.mlp.experts.down_proj.dtype == network.lm_head.weight.dtype == torch.bfloat16
    before = load_file(tmp_path / "model" / "model.safetensors")
    stored = before[f"model.layers.{len(network.model.layers) - 1}.self_attn.o_proj.weight_scale_inv"]
    assert torch.equal(layer.self_attn.o_proj.weight_scale_inv, stored)
    assert layer.self_attn.o_proj.weight.dtype == torch.float8_e4m3fn


def test_the_card_says_so(tmp_path: Path) -> None:
    model = opened(gpt_oss(tmp_path / "model"))
    written(model, plan_of(model), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "the source stores its experts quantised, and here their matrices are in bfloat16" in card
    provenance = json.loads((tmp_path / "out" / "excise_recovery.json").read_text())["refit"]
    assert provenance["dequantised"] is True
    assert {name.rpartition(".")[2] for name in provenance["tensors"]} == {"gate_up_proj", "down_proj"}


# Settings.


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"modules_to_not_convert": ["lm_head"]}, {"modules_to_not_convert": ["lm_head", "a.experts"]}),
        ({"ignored_layers": ["gate"]}, {"ignored_layers": ["gate", "a.experts"]}),
        (
            {"modules_to_not_convert": None, "bits": 8},
            {"modules_to_not_convert": ["lm_head", "embed", "a.experts"], "bits": 8},
        ),
        ({"modules_to_not_convert": ["a.experts"]}, {"modules_to_not_convert": ["a.experts"]}),
    ],
)
def test_settings_leave_out_the_experts(settings: dict[str, Any], expected: dict[str, Any]) -> None:
    """Where no list was given a reader knows of the head; a list has to name it."""
    layout = stored("DeepSeek-V3 FP8", {"embed.weight": ("BF16", (32, 16)), "norm.weight": ("BF16", (16,))})
    pieces = [
        piece
        for piece in by_name(slice_layout(layout, whole(layout), dequantise=True)).values()
        if piece.name in ("embed.weight", "norm.weight") or "shared" in piece.name
    ]
    assert without(settings, ["a.experts"], pieces) == expected
    plain = [piece for piece in pieces if piece.dtype == "BF16"]
    assert without(settings, ["a.experts"], plain) is None


# Refusals.

FOLDERS: list[Path] = []


@pytest.fixture(autouse=True)
def _place(tmp_path: Path) -> None:
    FOLDERS[:] = [tmp_path / "stored"]


def stored(name: str, more: Any = None, **settings: Any) -> Layout:
    """A checkpoint of one of the hub's formats, by names and shapes."""
    style = FORMATS[name]
    config = {"architectures": ["SomeForCausalLM"], **CONFIG, **style.config}
    config["quantization_config"] = {**config.get("quantization_config", {"quant_method": "fp8"}), **settings}
    return lay_out(open_checkpoint(write(FOLDERS[0], config, layers(style) | OTHERS | (more or {}))))


def whole(layout: Layout) -> Plan:
    return Plan(8, dict.fromkeys(layout.shape.layers, (0, 1, 2, 3, 4, 5, 6, 7)))


@pytest.mark.parametrize("name", ["GPTQ", "AWQ", "compressed-tensors"])
def test_what_cannot_be_dequantised_is_refused(name: str) -> None:
    method = name.lower()
    with pytest.raises(ExciseError, match=rf"stored quantised \({method}, I.*only fp8 and mxfp4 can be"):
        check_storable(stored(name), dequantise=True)


@pytest.mark.parametrize("name", ["DeepSeek-V3 FP8", "gpt-oss MXFP4"])
def test_only_on_request(name: str) -> None:
    layout = stored(name)
    check_storable(layout, dequantise=True)
    with pytest.raises(ExciseError, match=r"takes no changed numbers; `refit: \{dequantise: true\}`"):
        check_storable(layout, dequantise=False)


def test_other_scales_are_refused() -> None:
    """Numbers that belong to the quantised matrices and that nothing is known of would be left behind."""
    scale = {
        f"model.layers.{layer}.mlp.experts.{e}.up_proj.input_scale": ("F32", ())
        for layer in (0, 1)
        for e in range(8)
    }
    layout = stored("DeepSeek-V3 FP8", scale)
    with pytest.raises(ExciseError, match=r"input_scale \(F32 \[\]\) is stored in a form that Excise cannot"):
        check_storable(layout, dequantise=True)


def test_experts_that_are_plain_need_nothing(tmp_path: Path) -> None:
    """Attention alone is quantised: refits are written as ever, and the settings stay."""
    tiny.save(tiny.build("mixtral", hidden_size=136), tmp_path / "model")
    to_fp8(tmp_path / "model")
    model = opened(tmp_path / "model")
    plan = plan_of(model)
    refit = refit_experts(model, plan, TEXT, ridge=0.1)
    prune.export(model, plan, tmp_path / "out", refit=refit)
    assert torch.equal(read_again(tmp_path / "out", plan), refitted_logits(model.anatomy, refit, TEXT))
    settings = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("model", "out")]
    assert settings[0]["quantization_config"] == settings[1]["quantization_config"]


def test_in_another_precision_it_is_refused(tmp_path: Path) -> None:
    model = opened(gpt_oss(tmp_path / "model"), dtype="float32")
    plan = plan_of(model)
    refit = refit_experts(model, plan, TEXT, ridge=0.1)
    with pytest.raises(ExciseError, match="computes in torch.float32.*load it with dtype: bfloat16"):
        prune.export(model, plan, tmp_path / "out", refit=refit, dequantise=True)
    assert not (tmp_path / "out").exists()


def test_under_an_intervention_it_is_refused(tmp_path: Path) -> None:
    model = opened(gpt_oss(tmp_path / "model"))
    plan = plan_of(model)
    refit = refit_experts(model, plan, TEXT, ridge=0.1)
    with restricted(model.anatomy, plan), pytest.raises(ExciseError, match="already restricted"):
        prune.export(model, plan, tmp_path / "out", refit=refit, dequantise=True)
    with pytest.raises(ExciseError, match="dequantise is for a refit"):
        prune.export(model, plan, tmp_path / "out", dequantise=True)


def test_bytes_that_are_missing_are_not_made_up(tmp_path: Path) -> None:
    """Down projections alone are not enough."""
    model = opened(gpt_oss(tmp_path / "model"))
    name = "model.layers.0.mlp.experts.down_proj"
    save_file({name: torch.zeros(4, 32, 64, dtype=torch.bfloat16)}, tmp_path / "changed.safetensors")
    changed, _ = read_header(tmp_path / "changed.safetensors")
    with pytest.raises(ExciseError, match="was not dequantised, so it cannot be written"):
        export(
            model.layout,
            plan_of(model),
            tmp_path / "out",
            recovered=TrainedWeights(changed, {}, dequantised=True),
        )
    assert not (tmp_path / "out").exists()
