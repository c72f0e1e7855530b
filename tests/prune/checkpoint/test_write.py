"""The export: exact bytes, other readers, atomic, verified, without torch; what is refused."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from experts.disk.fingerprint import fingerprint
from experts.disk.layout import Layout, lay_out
from experts.disk.shards import open_checkpoint
from experts.errors import ExciseError
from experts.plan import Plan
from prune.checkpoint import ranges
from prune.checkpoint import write as checkpoint_module
from prune.checkpoint.write import export
from prune.inspect import summary
from tests.support import tiny
from tests.support.inputs import unequal_plan, uniform_plan


def layout_of(folder: Path) -> Layout:
    return lay_out(open_checkpoint(folder))


def tensors(folder: Path) -> dict[str, np.ndarray]:
    """By the reference reader, through whichever files the folder has."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "numpy") as file:
            found.update({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    return found


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return tiny.save(tiny.build("qwen2_moe"), tmp_path / "sharded", max_shard_size="60KB")


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_kept_tensors_are_the_source_bytes(family: str, saved: dict[str, Path], tmp_path: Path) -> None:
    """Expected tensors worked out by name and row with numpy, from the reference reader alone."""
    layout = layout_of(saved[family])
    plan = unequal_plan(layout.shape.layers)
    written = export(layout, plan, tmp_path / "out")
    source, result = tensors(saved[family]), tensors(tmp_path / "out")
    expected: dict[str, np.ndarray] = {}
    for name, value in source.items():
        prefix, dot, rest = name.partition(".experts.")
        layer = int(name.split("layers.")[1].split(".")[0]) if "layers." in name else -1
        kept = list(plan.kept.get(layer, ()))
        number = rest.split(".")[0]
        if dot and number.isdigit():
            if int(number) in kept:
                expected[f"{prefix}.experts.{kept.index(int(number))}.{rest.split('.', 1)[1]}"] = value
        elif dot or name.endswith(
            ("mlp.gate.weight", "moe.gate.weight", "router.weight", "router.bias", "e_score_correction_bias")
        ):
            expected[name] = value[kept]
        else:
            expected[name] = value
    assert result.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(result[name], value, err_msg=name)
    removed = sum(value.nbytes for value in source.values()) - sum(value.nbytes for value in result.values())
    assert written.removed == removed > 0


def test_sharded_source(sharded: Path, tmp_path: Path) -> None:
    layout = layout_of(sharded)
    written = export(layout, uniform_plan(layout.shape.layers), tmp_path / "out")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 3
    assert index["metadata"]["total_size"] == written.size == open_checkpoint(tmp_path / "out").size
    assert layout.checkpoint.size - written.size == written.removed


def test_config_is_patched_only_in_the_count(saved: dict[str, Path], tmp_path: Path) -> None:
    layout = layout_of(saved["mixtral"])
    export(layout, uniform_plan(layout.shape.layers), tmp_path / "out")
    before, after = (
        json.loads((folder / "config.json").read_text()) for folder in (saved["mixtral"], tmp_path / "out")
    )
    assert {key for key in before | after if before.get(key) != after.get(key)} == {"num_local_experts"}
    assert list(before) == list(after)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (saved["mixtral"] / name).read_bytes()


def test_prediction_heads_are_dropped(saved: dict[str, Path], tmp_path: Path) -> None:
    """A DeepSeek-V3 with a multi-token-prediction layer behind the decoder, as on the hub."""
    folder = tmp_path / "mtp"
    tiny.save(tiny.build("deepseek_v3"), folder)
    everything = tensors(folder)
    extra = {
        name.replace("layers.2.", "layers.3."): value
        for name, value in everything.items()
        if "layers.2." in name
    }
    save_file(
        {**everything, **extra, "model.layers.3.eh_proj.weight": np.ones((4, 4), np.float32)},
        folder / "model.safetensors",
    )
    layout = layout_of(folder)
    written = export(layout, uniform_plan(layout.shape.layers, (0, 1, 4, 5)), tmp_path / "out")
    assert f"{len(extra) + 1} tensors of multi-token-prediction" in written.notes[0]
    assert not any("layers.3." in name for name in tensors(tmp_path / "out"))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_nextn_predict_layers"] == 0
    assert layout.checkpoint.size - written.size == written.removed


def test_symlinked_cache(saved: dict[str, Path], tmp_path: Path) -> None:
    """The hub cache is a folder of links to blobs."""
    links = tmp_path / "snapshot"
    links.mkdir()
    for file in saved["olmoe"].iterdir():
        (links / file.name).symlink_to(file)
    layout = layout_of(links)
    export(layout, uniform_plan(layout.shape.layers), tmp_path / "out")
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())


def test_inspect_adds_up(saved: dict[str, Path]) -> None:
    found = summary(layout_of(saved["qwen2_moe"]))
    source = tensors(saved["qwen2_moe"])
    inside = sum(value.size for name, value in source.items() if ".experts." in name)
    assert found["parameters"] == {
        "experts": inside,
        "elsewhere": sum(value.size for value in source.values()) - inside,
    }
    assert (found["moe_layers"], found["experts"], found["top_k"], found["shared_experts"]) == (3, 8, 2, 1)
    assert found["savings"][1]["keep"] == 4
    rows = 3 * 4 * 32 * 4  # router rows of 4 experts in 3 layers, float32
    assert found["savings"][1]["saved"] == inside // 2 * 4 + rows


# What is refused, with nothing half-written.


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(("out", ".out"))]


def test_existing_output_is_not_touched(saved: dict[str, Path], tmp_path: Path) -> None:
    layout = layout_of(saved["olmoe"])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("x")
    with pytest.raises(
        ExciseError, match=r"out: exists already; choose another output, or replace it with --force"
    ):
        export(layout, uniform_plan(layout.shape.layers), tmp_path / "out")
    with pytest.raises(ExciseError, match="was not written by Excise"):
        export(layout, uniform_plan(layout.shape.layers), tmp_path / "out", force=True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["precious"]
    (tmp_path / "out" / "precious").unlink()
    for kept in ((0, 2, 3, 5, 6, 7), (0, 1, 2)):  # into an empty folder, then over a checkpoint of our own
        export(layout, uniform_plan(layout.shape.layers, kept), tmp_path / "out", force=True)
        assert layout_of(tmp_path / "out").shape.num_experts == len(kept)
    assert leftovers(tmp_path) == ["out"]


def test_the_source_and_files_are_never_replaced(tmp_path: Path) -> None:
    source = tiny.save(tiny.build("olmoe"), tmp_path / "models" / "source")
    layout, plan = layout_of(source), uniform_plan((0, 1, 2))
    for out in (source, tmp_path / "models"):
        with pytest.raises(ExciseError, match="is or contains the source model"):
            export(layout, plan, out, force=True)
    (tmp_path / "file").write_text("precious")
    with pytest.raises(ExciseError, match="file: exists and was not written by Excise"):
        export(layout, plan, tmp_path / "file", force=True)
    assert (tmp_path / "file").read_text() == "precious"
    assert layout_of(source).shape.num_experts == 8


def test_a_lying_depth_is_refused(saved: dict[str, Path], tmp_path: Path) -> None:
    """Otherwise the last layers would pass for a prediction head, and be dropped."""
    config = json.loads((saved["olmoe"] / "config.json").read_text())
    (tmp_path / "model.safetensors").symlink_to(saved["olmoe"] / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    with pytest.raises(ExciseError, match=r"model\.layers\.2\..* belongs to layer 2 or later"):
        layout_of(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_experts": [8, 4]}, r"num_experts is \[8, 4\], expected a whole number"),
        ({"num_experts": "eight"}, "num_experts is 'eight'"),
        ({"num_experts_per_tok": "x"}, "num_experts_per_tok is 'x'"),
        ({"num_experts_per_tok": 99}, "num_experts_per_tok = 99 exceeds the 8 experts per layer"),
        ({"n_group": -4}, "n_group is -4"),
    ],
)
def test_odd_configurations_are_refused(
    change: dict[str, Any], message: str, saved: dict[str, Path], tmp_path: Path
) -> None:
    config = json.loads((saved["olmoe"] / "config.json").read_text())
    (tmp_path / "model.safetensors").symlink_to(saved["olmoe"] / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ExciseError, match=message):
        layout_of(tmp_path)


def test_too_little_disk(saved: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = layout_of(saved["olmoe"])
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(ExciseError, match=r"needed, 1\.00 kB free; free some or choose another output"):
        export(layout, uniform_plan(layout.shape.layers), tmp_path / "out")
    assert not leftovers(tmp_path)


def test_full_disk_in_the_middle(
    saved: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = layout_of(saved["olmoe"])

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(ExciseError, match="No space left on device; nothing was written"):
        export(layout, uniform_plan(layout.shape.layers), tmp_path / "out")
    assert not leftovers(tmp_path)


def test_a_write_that_lies_is_detected(
    saved: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout, write, calls = layout_of(saved["olmoe"]), os.pwrite, []

    def flip(descriptor: int, data: memoryview, offset: int) -> int:
        calls.append(offset)
        return write(descriptor, bytes([data[0] ^ 1]) + bytes(data[1:]) if len(calls) == 3 else data, offset)

    monkeypatch.setattr(os, "pwrite", flip)
    with pytest.raises(ExciseError, match="differ from .* after writing"):
        export(layout, uniform_plan(layout.shape.layers), tmp_path / "out")
    assert not leftovers(tmp_path)


def test_a_source_that_changes_is_detected(
    saved: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    tiny.save(tiny.build("olmoe"), source)
    layout, copy = layout_of(source), ranges._copy

    def touch(source: int, target: int, job: Any, buffer: memoryview) -> int:
        os.utime(job.source, ns=(1, 1))
        return copy(source, target, job, buffer)

    monkeypatch.setattr(ranges, "_copy", touch)
    with pytest.raises(ExciseError, match=r"model\.safetensors: changed while it was being copied"):
        export(layout, uniform_plan(layout.shape.layers), tmp_path / "out")
    assert not leftovers(tmp_path)


@pytest.mark.parametrize(
    "stage", ["_copy", "_read_back", "verify_shapes", "_write_new_files", "_sync_all", "settle"]
)
def test_ctrl_c_at_any_stage(
    stage: str, saved: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = layout_of(saved["olmoe"])

    def interrupt(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(ranges if hasattr(ranges, stage) else checkpoint_module, stage, interrupt)
    with pytest.raises(KeyboardInterrupt):
        export(layout, uniform_plan(layout.shape.layers), tmp_path / "out")
    assert not leftovers(tmp_path)
    monkeypatch.undo()
    export(layout, uniform_plan(layout.shape.layers), tmp_path / "out")


def test_sigkill_leaves_nothing_that_loads(sharded: Path, tmp_path: Path) -> None:
    """Killed at random moments: OUT is absent, and a partial folder never has a config.json beside incomplete
    weights.
    """
    layout = layout_of(sharded)
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(uniform_plan(layout.shape.layers).to_json()))
    code = f"""
import os, sys, threading, time
sys.path.insert(0, {str(Path.cwd())!r})
from pathlib import Path
from experts.plan import Plan
from prune.checkpoint.write import export
from experts.disk.layout import lay_out
from experts.disk.shards import open_checkpoint
layout, plan = lay_out(open_checkpoint(Path({str(sharded)!r}))), Plan.read(Path({str(plan)!r}))
write = os.pwrite
os.pwrite = lambda *a: (time.sleep(0.005), write(*a))[1]
print("go", flush=True)
export(layout, plan, Path({str(tmp_path / "out")!r}), force=True)
print("done", flush=True)
"""
    rng, killed = np.random.default_rng(0), 0
    for _ in range(6):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(rng.uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        killed += "done" not in process.communicate()[0]
        if (tmp_path / "out").exists():
            assert open_checkpoint(tmp_path / "out").size == sum(
                t.nbytes for t in tensors(tmp_path / "out").values()
            )
        for partial in tmp_path.glob(".out.*.partial"):
            if (partial / "config.json").exists():
                assert layout_of(partial).shape.num_experts == 6
    assert killed >= 3
    export(layout, Plan.read(plan), tmp_path / "out", force=True)
    assert layout_of(tmp_path / "out").shape.num_experts == 6
    assert leftovers(tmp_path) == ["out"], "partial folders of killed exports are removed by the next one"


def test_never_imports_torch(saved: dict[str, Path], tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(uniform_plan((0, 1, 2)).to_json()))
    code = """
import sys
from prune.console.cli import app
try:
    app(sys.argv[1:])
except SystemExit as stop:
    assert stop.code == 0, stop.code
assert "torch" not in sys.modules and "transformers" not in sys.modules
"""
    for command in (
        ["export", str(saved["olmoe"]), str(plan), str(tmp_path / "out")],
        ["inspect", str(saved["olmoe"])],
        ["criteria"],
    ):
        done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_plan_for_another_model(saved: dict[str, Path], tmp_path: Path) -> None:
    layout = layout_of(saved["olmoe"])
    own = fingerprint(layout.checkpoint)
    other = replace(uniform_plan(layout.shape.layers), model="0123456789abcdef")
    with pytest.raises(ExciseError, match=rf"made for fingerprint 0123456789abcdef, this one has {own}"):
        export(layout, other, tmp_path / "out", fingerprint=own)
    with pytest.raises(ExciseError, match=r"prunes layers \[0, 1, 2\], the model's MoE layers are \[1, 2\]"):
        export(layout_of(saved["glm4_moe"]), uniform_plan((0, 1, 2)), tmp_path / "out")
    assert not leftovers(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "not a plan"),
        ("[", "not valid JSON"),
        ('{"experts": 8, "kept": {"0": [9]}}', r"layer 0 keeps expert 9, but the model has experts 0\.\.7"),
        ('{"experts": 8, "kept": {"0": [2, 1]}}', "must be sorted and without repeats"),
        ('{"experts": 8, "kept": {"0": []}}', "layer 0 keeps no expert"),
        ('{"experts": 8, "kept": {"x": [1]}}', "not a plan"),
        ('{"experts": 8, "kept": {}}', "some layer must be there"),
        ('{"experts": Infinity, "kept": {"0": [1]}}', "not a plan"),
        ('{"experts": 8, "kept": {"0": [0.9, 1.2]}}', "whole numbers"),
        ('{"experts": 8, "kept": {"0": "012"}}', "whole numbers"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_bad_plan_files(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "plan.json").write_text(content)
    with pytest.raises(ExciseError, match=message):
        Plan.read(tmp_path / "plan.json")


def test_plan_below_top_k_or_uneven_is_refused(saved: dict[str, Path], tmp_path: Path) -> None:
    """Plans written by hand pass the same checks as budgets."""
    with pytest.raises(ExciseError, match="layer 0 keeps 2 experts, but every token uses top_k = 3"):
        export(layout_of(saved["olmoe"]), uniform_plan((0, 1, 2), (0, 1)), tmp_path / "out")
    with pytest.raises(ExciseError, match="layer 1 keeps 3 and 1 experts in its 2 router groups"):
        export(layout_of(saved["deepseek_v3"]), uniform_plan((1, 2), (0, 1, 2, 4)), tmp_path / "out")
    assert not leftovers(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop("model.layers.1.mlp.experts.3.up_proj.weight"),
            r"expert 3 of model\.layers\.1\.mlp is not stored like expert 0 \(up_proj\.weight\)",
        ),
        (
            lambda t: [t.pop(n) for n in list(t) if ".layers.1.mlp.experts.7." in n],
            r"holds experts 0\.\.6 \(7 of them\), config\.json promises 8",
        ),
        (
            lambda t: t.update({"model.layers.0.mlp.gate.weight": np.ones((7, 32), np.float32)}),
            r"gate\.weight has shape \[7, 32\], expected 8",
        ),
        (
            lambda t: t.update({"model.layers.0.mlp.temperature": np.ones(8, np.float32)}),
            r"mlp\.temperature has 8 rows and is not a known router",
        ),
        (lambda t: t.pop("model.layers.0.mlp.gate.weight"), r"model\.layers\.0\.mlp has experts but no gate"),
        (
            lambda t: [t.pop(n) for n in list(t) if ".experts." in n],
            "counts experts in config.json, but no tensor is named",
        ),
    ],
)
def test_odd_checkpoints_are_refused(
    saved: dict[str, Path], tmp_path: Path, change: Any, message: str
) -> None:
    everything = tensors(saved["olmoe"])
    change(everything)
    save_file(everything, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((saved["olmoe"] / "config.json").read_text())
    with pytest.raises(ExciseError, match=message):
        layout_of(tmp_path)


def test_dense_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama", "num_hidden_layers": 1}')
    save_file(
        {"model.layers.0.mlp.up_proj.weight": np.ones((2, 2), np.float32)}, tmp_path / "model.safetensors"
    )
    with pytest.raises(ExciseError, match="model type 'llama' is dense, without routed experts"):
        layout_of(tmp_path)
