"""What cannot be streamed is refused in one line, before data is read where headers tell it."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import core_model_loading, modeling_utils

from experts.disk.shards import open_checkpoint
from experts.errors import ExciseError
from experts.loading import load_network
from experts.streaming import files
from experts.streaming.decoder import check_ties
from experts.streaming.layers import Streamed
from experts.streaming.library import FUNCTION
from tests.support import tiny
from tests.support.quantised import to_fp8
from tests.support.streaming import on_meta, opened

EXPERT = "model.layers.1.mlp.experts.5.down_proj.weight"


@pytest.fixture
def folder(saved: dict[str, Path], tmp_path: Path) -> Path:
    """An OLMoE of one's own."""
    return Path(shutil.copytree(saved["olmoe"], tmp_path / "model"))


def edit(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Write the weights anew."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def reason(call: Callable[[], object]) -> str:
    with pytest.raises(ExciseError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Before data is read.


@pytest.mark.parametrize(
    "change",
    [
        lambda weights: weights.pop("model.layers.2.input_layernorm.weight"),
        lambda weights: weights.pop("lm_head.weight"),
        lambda weights: weights.update({"model.norm.weight": torch.ones(5)}),
        lambda weights: weights.update({EXPERT: torch.ones(32, 7)}),
        lambda weights: weights.pop(EXPERT),
    ],
    ids=["layer", "head", "norm", "shape of an expert", "expert"],
)
def test_checked_like_a_whole_load(
    change: Callable[[dict[str, Tensor]], object], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(folder, change)
    expected = reason(lambda: load_network(folder))
    monkeypatch.setattr(files, "safe_open", None)  # no data is read
    assert reason(lambda: opened(folder)) == expected
    assert str(folder) in expected


def test_scales_that_do_not_fit(tmp_path: Path) -> None:
    """What fails in the conversion fails in the dry run too."""
    folder = tiny.save(tiny.build("deepseek_v3", hidden_size=256), tmp_path / "model")
    to_fp8(folder)
    name = "model.layers.1.self_attn.o_proj.weight_scale_inv"
    edit(folder, lambda weights: weights.update({name: torch.ones(3, 1)}))
    assert reason(lambda: opened(folder)) == reason(lambda: load_network(folder))


def test_dense_model(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, vocab_size=259
    )
    folder = tiny.save(transformers.LlamaForCausalLM(config), tmp_path / "model")
    assert reason(lambda: opened(folder)).startswith("llama: a dense model")


def test_unknown_format(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    stored = checkpoint.tensors[EXPERT]
    object.__setattr__(stored, "dtype", "F6_E2M3")
    found = reason(lambda: files.on_meta(checkpoint.tensors))
    assert "F6_E2M3" in found
    assert "memory.model: resident" in found


def test_shared_weights() -> None:
    check_ties({"lm_head.weight": "model.embed_tokens.weight"}, "model.layers")
    for ties in ({"model.layers.1.mlp.weight": "model.a"}, {"model.a": "model.layers.1.mlp.weight"}):
        found = reason(lambda ties=ties: check_ties(ties, "model.layers"))
        assert found.startswith("model.layers.1.mlp.weight is shared")


# Another version of transformers.


@pytest.mark.parametrize(
    ("owner", "name"),
    [(modeling_utils, FUNCTION), (core_model_loading, "rename_source_key")],
)
@pytest.mark.parametrize("other", [None, lambda model, tensors: None])
def test_another_version_of_the_library(
    owner: Any, name: str, other: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if other is None:
        monkeypatch.delattr(owner, name)
    else:
        monkeypatch.setattr(owner, name, other)
    found = reason(lambda: opened(folder))
    for part in (f"transformers {transformers.__version__}", name, "memory.model: resident", "constraints"):
        assert part in found


def test_the_library_is_as_before(folder: Path) -> None:
    """After success and after a refusal; so is the environment."""
    before, environment = getattr(modeling_utils, FUNCTION), dict(os.environ)
    _enter(opened(folder)[1], range(3))
    assert getattr(modeling_utils, FUNCTION) is before
    edit(folder, lambda weights: weights.pop("lm_head.weight"))
    reason(lambda: opened(folder))
    assert getattr(modeling_utils, FUNCTION) is before
    assert dict(os.environ) == environment


# While it is in use.


def longer(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b" ")


def shorter(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 100)


def touched(path: Path) -> None:
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def replaced(path: Path) -> None:
    shutil.copy2(path, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def removed(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("change", [longer, shorter, touched, replaced, removed])
def test_the_checkpoint_changes(change: Callable[[Path], None], ahead: bool, folder: Path) -> None:
    network, weights = opened(folder, ahead=ahead)
    without = on_meta(network)
    with weights.loaded(range(1)):
        pass
    weights.forget()
    change(folder / "model.safetensors")
    found = reason(lambda: _enter(weights, range(1, 3)))
    verb = "is gone" if change is removed else "changed"
    assert found == f"{folder}/model.safetensors: {verb} since the checkpoint was opened; start again"
    assert on_meta(network) == without


def test_the_checkpoint_changes_while_a_layer_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even while its last tensors are."""
    network, weights = opened(folder)
    without = on_meta(network)
    load = weights._conversion.load
    last = {stored.name for stored in weights._parts.layers[0].groups[-1]}

    def changing(tensors: Any, device: torch.device) -> Any:
        report = load(tensors, device)
        if set(tensors) == last:
            touched(folder / "model.safetensors")
        return report

    monkeypatch.setattr(weights._conversion, "load", changing)
    assert "changed since the checkpoint was opened" in reason(lambda: _enter(weights, range(1)))
    assert on_meta(network) == without


def test_the_checkpoint_changes_while_it_is_read_ahead(folder: Path) -> None:
    """The error comes with the layer that it is about."""
    network, weights = opened(folder, ahead=True)
    without = on_meta(network)
    with weights.loaded(range(1)):
        assert weights._ahead is not None
        assert weights._ahead.take(1)
        weights._drop(1)
        shorter(folder / "model.safetensors")
        weights._ahead.start(1)
    assert "changed" in reason(lambda: _enter(weights, range(1, 2)))
    assert on_meta(network) == without


@pytest.mark.parametrize(
    ("trouble", "line"),
    [
        ("CUDA out of memory. Tried to allocate", "not enough memory on the GPU (CUDA out of memory)"),
        ("Traceback\nValueError: odd\nError: Merge", "cannot be loaded (model.norm.weight: ValueError: odd"),
    ],
)
def test_the_conversion_fails(trouble: str, line: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers collects what goes wrong in it as text."""
    network, weights = opened(folder)
    without = on_meta(network)
    load = weights._conversion.load

    def failing(tensors: Any, device: torch.device) -> Any:
        report = load(tensors, device)
        report.conversion_errors["model.norm.weight"] = trouble
        return report

    monkeypatch.setattr(weights._conversion, "load", failing)
    assert line in reason(lambda: _enter(weights, range(1)))
    assert on_meta(network) == without


def test_weights_that_do_not_come(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, weights = opened(folder)
    without = on_meta(network)
    load = weights._conversion.load
    monkeypatch.setattr(
        weights._conversion,
        "load",
        lambda tensors, device: load({k: v for k, v in tensors.items() if "q_proj" not in k}, device),
    )
    found = reason(lambda: _enter(weights, range(2, 3)))
    assert "decoder layer 2 cannot be loaded (1 of its weights were not loaded, first self_attn.q" in found
    assert on_meta(network) == without


def test_config_of_another_model(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 64}))
    assert reason(lambda: opened(folder)) == reason(lambda: load_network(folder))


def _enter(weights: Streamed, span: range) -> None:
    with weights.loaded(span):
        pass
